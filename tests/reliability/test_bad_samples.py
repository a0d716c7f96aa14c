"""Every kind of odd image is used, every kind of bad sample is replaced, and the file says exactly which."""

import json
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import BatchSampler, DataLoader

from llava_sp.data.check import check_records
from llava_sp.data.collator import Collator
from llava_sp.data.conversation import get_template
from llava_sp.data.dataset import ConversationDataset
from llava_sp.data.problems import Problem
from llava_sp.data.records import open_records
from llava_sp.data.sampler import ModalityLengthSampler
from llava_sp.train.quarantine import QUARANTINE_NAME, Quarantine
from llava_sp.utils.errors import UserError
from tests.data.conftest import VISUAL, Pixels, image_token_id, tokenizer  # noqa: F401 - fixtures
from tests.reliability.bad_data import ODD_IMAGES, BadData, make_bad_data
from tests.reliability.counting import COUNTS
from tests.reliability.runs import ZERO_2, Runs, bits
from tests.train.test_quarantine import on_ranks

BAD = {
    Problem.IMAGE_OUTSIDE: 6,
    Problem.IMAGE_CORRUPT: 6,
    Problem.IMAGE_MISSING: 2,
    Problem.IMAGE_COUNT: 3,
    Problem.ROLES: 2,
    Problem.IMAGE_TOO_LARGE: 1,
    Problem.NO_ROOM: 1,
}
"""How many samples of each kind are bad, of 45."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> BadData:
    return make_bad_data(tmp_path_factory.mktemp("bad"))


@pytest.fixture
def dataset(data: BadData, tokenizer: Any, image_token_id: int) -> ConversationDataset:  # noqa: F811
    return ConversationDataset(
        open_records(data.data_path),
        image_folder=data.image_folder,
        tokenizer=tokenizer,
        image_token_id=image_token_id,
        image_processor=Pixels(),
        template=get_template("v1"),
        num_image_tokens=VISUAL,
        max_length=2048,
        replace_bad=True,
    )


def read_all(
    dataset: ConversationDataset,
    folder: Path,
    *,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
    epochs: int = 1,
    max_share: float = 1.0,
) -> list[dict[str, Any]]:
    """Reads all data as a training does, two micro-batches of two a step over all ranks; returns the rank's batches."""
    sampler = ModalityLengthSampler(dataset.modality_lengths, 2, world_size=2, seed=1, group=True)
    quarantine = Quarantine(folder, len(dataset), max_share)
    read, step = [], 0
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        order = list(BatchSampler(sampler, 2, drop_last=False))
        mine = order[rank::ranks]
        batches = iter(DataLoader(dataset, batch_sampler=mine, num_workers=workers, collate_fn=Collator(0)))
        while of_step := list(islice(batches, 2 // ranks)):
            step += 1
            quarantine.note([bad for batch in of_step for bad in batch.get("replaced", [])], step)
            read += of_step
        for batch, positions in zip(read[-len(mine) :], mine, strict=True):
            images = sum(dataset.modality_lengths[positions] > 0)
            assert len(batch["input_ids"]) == len(positions)
            assert len(batch.get("pixel_values", [])) == images
    return read


def found(folder: Path) -> dict[str, str]:
    """The problem of each sample in the file."""
    entries = [json.loads(line) for line in (folder / QUARANTINE_NAME).read_text().splitlines()]
    problems = {entry["id"]: entry["problem"] for entry in entries}
    assert len(problems) == len(entries)
    return problems


def test_every_bad_sample_is_replaced_and_every_good_one_used(
    data: BadData, dataset: ConversationDataset, tmp_path: Path
) -> None:
    used = Counter(name for batch in read_all(dataset, tmp_path) for name in batch["sample_ids"])
    assert len(data.names) == 45
    assert Counter(data.bad.values()) == BAD
    assert found(tmp_path) == data.bad
    assert set(used) == set(data.names) - set(data.bad) >= {*ODD_IMAGES, "nothing to learn"}
    for line in (tmp_path / QUARANTINE_NAME).read_text().splitlines():
        entry = json.loads(line)
        assert data.names[entry["record"] - 1] == entry["id"]
        assert entry["replaced_by"] in used


def test_the_file_is_the_same_for_any_number_of_workers_and_epochs(
    dataset: ConversationDataset, tmp_path: Path
) -> None:
    files = []
    for workers, epochs in ((0, 1), (2, 1), (0, 2), (2, 2)):
        folder = tmp_path / f"{workers}{epochs}"
        folder.mkdir()
        read_all(dataset, folder, workers=workers, epochs=epochs)
        files.append((folder / QUARANTINE_NAME).read_bytes())
    assert len(set(files)) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_file_is_the_same_for_two_ranks(workers: int, dataset: ConversationDataset, tmp_path: Path) -> None:
    def work(rank: int) -> list[str]:
        batches = read_all(dataset, tmp_path / "two", rank=rank, ranks=2, workers=workers, epochs=2)
        return [name for batch in batches for name in batch["sample_ids"]]

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = [name for batch in read_all(dataset, tmp_path / "one", epochs=2) for name in batch["sample_ids"]]
    assert Counter(chain.from_iterable(on_ranks(2, tmp_path, work))) == Counter(alone)
    assert (tmp_path / "two" / QUARANTINE_NAME).read_bytes() == (tmp_path / "one" / QUARANTINE_NAME).read_bytes()


def test_the_check_before_training_finds_just_what_training_replaces(
    data: BadData, dataset: ConversationDataset
) -> None:
    report = check_records(dataset, None, max_bad_share=data.share)
    assert report.unreadable == len(data.bad)
    assert {problem: count for problem, count in report.counts.items() if problem.unreadable} == BAD
    assert report.ok
    assert not check_records(dataset, None, max_bad_share=data.share * 0.99).ok


def test_more_than_may_be_stop_the_run(data: BadData, dataset: ConversationDataset, tmp_path: Path) -> None:
    read_all(dataset, tmp_path, max_share=data.share)
    with pytest.raises(UserError, match=r"of 45 samples cannot be read"):
        read_all(dataset, tmp_path, max_share=data.share * 0.99)


def trained(runs: Runs, data: BadData, ranks: int = 1, workers: int = 0) -> Path:
    """The output folder of a training on them, which is run unless it has been."""
    flags = ["--data_path", str(data.data_path), "--image_folder", str(data.image_folder), "--max_bad_share", "0.5"]
    flags += ["--dataloader_num_workers", str(workers), *(ZERO_2 if ranks > 1 else [])]
    output = runs / f"bad-{ranks}-{workers}"
    if not output.exists():
        done = runs.run(output.name, *flags, ranks=ranks)
        assert set(done.codes) == {0}, done.text
    return output


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_a_training_on_them_counts_each_once(runs: Runs, data: BadData, ranks: int, workers: int) -> None:
    output = trained(runs, data, ranks, workers)
    lines = (output / QUARANTINE_NAME).read_text().splitlines()
    assert {entry["id"]: entry["problem"] for entry in map(json.loads, lines)} == data.bad
    assert len(lines) == len(data.bad)
    first = trained(runs, data)
    assert (output / QUARANTINE_NAME).read_text() == (first / QUARANTINE_NAME).read_text()
    assert bits(output).keys() == bits(first).keys()
    COUNTS["faults injected"] += len(data.bad)
    COUNTS["faults survived"] += len(lines)


def test_a_training_on_too_many_of_them_stops(runs: Runs, data: BadData) -> None:
    flags = ["--data_path", str(data.data_path), "--image_folder", str(data.image_folder), "--max_bad_share", "0.1"]
    stopped = runs.run("bad-too-many", *flags)
    assert stopped.codes == [2], stopped.text
    assert "raise --max_bad_share, now 0.1" in stopped.text
    assert "Traceback" not in stopped.text
