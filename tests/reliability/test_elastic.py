"""A run that continues on another number of ranks is the same run: the same samples in each step, the same losses."""

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_sp.train.elastic import repartition, reseed
from llava_sp.train.pickles import check_pickles, load
from llava_sp.utils.errors import UserError
from llava_sp.utils.manifest import seal
from tests.reliability.runs import LORA, PROJECTOR, ROOT, ZERO_2, Runs, steps_of
from tests.train.test_pickles import Malicious, saved

WITHOUT_DROPOUT = ["--lora_dropout", "0"]
"""Each rank draws its own dropout, so that another number of them gives another one."""

RECIPES: dict[str, tuple[list[str], list[str]]] = {
    "LoRA, ZeRO-2": (LORA, ZERO_2),
    "projector, ZeRO-2": (PROJECTOR, ZERO_2),
    "LoRA, ZeRO-3": (LORA, ["--deepspeed", str(ROOT / "configs" / "zero3.json")]),
    "LoRA, without DeepSpeed": (LORA, []),
}
LEGS = ((1, 3), (2, 6), (1, None))
"""Ranks, and the step after which they stop: from one rank to two and back, in the first epoch and in the second."""


def go(runs: Runs, output: str, recipe: list[str], flags: list[str], ranks: int, stop: int | None = None) -> str:
    """Runs to the end or to a stop; returns what was said."""
    cut = ["--stop_after_steps", str(stop)] if stop else []
    given = [*flags, *WITHOUT_DROPOUT, *cut]
    done = runs.run(output, *given, ranks=ranks, recipe=recipe, fault=f"log_ids:{runs / output}.ids")
    assert set(done.codes) == {0}, done.text
    return done.text


def ids_of(log: Path) -> list[list[str]]:
    """The samples of each step, whichever rank had them."""
    steps: dict[int, list[str]] = {}
    for file in log.parent.glob(f"{log.name}.*"):
        for step, _, ids in map(json.loads, file.read_text().splitlines()):
            steps.setdefault(step, []).extend(ids)
    return [sorted(steps[step]) for step in sorted(steps)]


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


@pytest.fixture(scope="module", params=RECIPES)
def moved(runs: Runs, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """The folders of a run on one rank without a break, and of the same one on one, two, and one."""
    recipe, flags = RECIPES[request.param]
    name = f"elastic-{list(RECIPES).index(request.param)}"
    go(runs, f"{name}-whole", recipe, flags, ranks=1)
    for ranks, stop in LEGS:
        before = hashes(runs / name / "checkpoint-3") if ranks == 2 else None
        go(runs, name, recipe, flags, ranks, stop)
        assert before is None or hashes(runs / name / "checkpoint-3") == before
    return runs / f"{name}-whole", runs / name


def test_each_step_takes_the_same_samples(moved: tuple[Path, Path]) -> None:
    whole, parts = (ids_of(folder.with_name(f"{folder.name}.ids")) for folder in moved)
    assert [len(ids) for ids in whole] == [4] * 8
    assert parts == whole


def test_the_losses_and_the_result_are_the_same_but_for_rounding(moved: tuple[Path, Path]) -> None:
    whole, parts = map(steps_of, moved)
    assert [line["step"] for line in parts] == list(range(1, 9))
    for name, close in (("loss", 1e-6), ("grad_norm", 1e-5), ("learning_rate/projector", 0), ("epoch", 0)):
        found, expected = ([line[name] for line in log] for log in (parts, whole))
        assert found == pytest.approx(expected, rel=close), name
    expected = weights_of(moved[0])
    for name, tensor in weights_of(moved[1]).items():
        assert torch.allclose(tensor, expected[name], rtol=1e-4, atol=1e-5), name
        assert tensor.isfinite().all()


def test_each_checkpoint_is_of_the_ranks_that_wrote_it(moved: tuple[Path, Path]) -> None:
    written = [len(list((moved[1] / f"checkpoint-{step}").glob("rng_state*.pth"))) for step in range(1, 9)]
    assert written == [1, 1, 1, 2, 2, 2, 1, 1]
    assert not list(moved[1].glob(".repartitioned*"))


def test_in_bf16_it_is_the_same_run_where_gradients_are_exchanged_in_fp32(runs: Runs) -> None:
    """By DeepSpeed's default they are in bf16, and whether one rank sums or two makes a difference of its rounding."""
    settings = json.loads((ROOT / "configs" / "zero2.json").read_text())
    (runs / "exchange.json").write_text(json.dumps({**settings, "communication_data_type": "fp32"}))
    flags = ["--deepspeed", str(runs / "exchange.json"), "--bf16", "True"]
    go(runs, "bf16-whole", LORA, flags, ranks=1)
    for ranks, stop in LEGS:
        go(runs, "bf16", LORA, flags, ranks, stop)
    whole, parts = ([line["loss"] for line in steps_of(runs / name)] for name in ("bf16-whole", "bf16"))
    assert parts == pytest.approx(whole, rel=1e-6)


def test_to_continue_on_other_ranks_once_more_gives_the_same_bits(runs: Runs) -> None:
    """With dropout: the random streams are seeded anew, by seed, step and rank alone."""
    results = []
    runs.run("dropout", *ZERO_2, "--stop_after_steps", "3")
    for name in ("dropout-a", "dropout-b"):
        shutil.copytree(runs / "dropout", runs / name)
        done = runs.run(name, *ZERO_2, ranks=2)
        assert set(done.codes) == {0}, done.text
        results.append(weights_of(runs / name))
        for rank in (0, 1):
            reseed(42, step=3, rank=rank)
            # Dropout draws from PyTorch's stream; Python's is as it was seeded.
            assert load(runs / name / "checkpoint-4" / f"rng_state_{rank}.pth")["python"] == random.getstate()
    assert all(torch.equal(results[1][name], tensor) for name, tensor in results[0].items())


@pytest.mark.parametrize("stage", [2, 3])
def test_the_files_are_those_that_so_many_ranks_write(runs: Runs, tmp_path: Path, stage: int) -> None:
    """Names, entries and types are DeepSpeed's own, sizes too but for the zeros at the end."""
    zero = ["--deepspeed", str(ROOT / "configs" / f"zero{stage}.json"), "--stop_after_steps", "2"]
    for ranks in (1, 2):
        go(runs, f"files-{stage}-{ranks}", LORA, zero, ranks)
    for before, after in ((1, 2), (2, 1)):
        source, expected = (runs / f"files-{stage}-{ranks}" / "checkpoint-2" for ranks in (before, after))
        result = repartition(source, ranks=after, into=tmp_path / f"{before}to{after}") / "global_step2"
        theirs = sorted(path.name for path in (expected / "global_step2").iterdir())
        assert sorted(path.name for path in result.iterdir()) == theirs
        for name in theirs:
            found, wanted = (tensors_of(load(folder / name), "") for folder in (result, expected / "global_step2"))
            assert set(found) == set(wanted)
            for key, tensor in wanted.items():
                assert found[key].dtype == tensor.dtype, key
                assert torch.allclose(found[key].view(-1)[: tensor.numel()], tensor.view(-1), rtol=1e-3, atol=1e-4), key


def tensors_of(value: Any, name: str) -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return {key: tensor for part, item in items for key, tensor in tensors_of(item, f"{name}/{part}").items()}


def test_no_pickle_of_a_checkpoint_runs_code(runs: Runs, tmp_path: Path) -> None:
    """Each of them in turn is a malicious one, in a checkpoint whose manifest is right."""
    go(runs, "harmless", LORA, [*ZERO_2, "--save_total_limit", "1"], 2, stop=3)
    checkpoint, canary = runs / "harmless" / "checkpoint-3", tmp_path / "canary"
    check_pickles(checkpoint)
    files = [path for path in checkpoint.rglob("*") if path.suffix in (".pt", ".pth")]
    assert len(files) == 6  # the schedule, and for two ranks the engine's file and two of ZeRO and of random states
    for file in files:
        content = file.read_bytes()
        file.write_bytes(saved({"weight": torch.ones(2), "more": Malicious(canary)}))
        with pytest.raises(UserError, match=f"{file.name} is not read.* names posix"):
            check_pickles(checkpoint)
        seal(checkpoint)
        done = runs.run("harmless", *ZERO_2, *WITHOUT_DROPOUT, ranks=1)
        assert done.codes == [2], done.text
        assert f"{file.name} is not read" in done.text
        file.write_bytes(content)
    assert not canary.exists()
    seal(checkpoint)
    done = runs.run("harmless", *ZERO_2, *WITHOUT_DROPOUT, "--save_total_limit", "1", ranks=1)
    assert done.codes == [0], done.text
