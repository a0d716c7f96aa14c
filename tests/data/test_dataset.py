"""Samples and batches: visual tokens in place, cut to length, padded; errors name the sample."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from llava_sp.constants import IGNORE_INDEX
from llava_sp.data.collator import Collator
from llava_sp.data.conversation import get_template
from llava_sp.data.dataset import REPLACEMENTS
from llava_sp.data.problems import Problem, Replaced
from llava_sp.utils.errors import UserError
from tests.data.conftest import VISUAL


def record(name: str, question: str, answer: str = "Two cats.", image: str | None = None) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns} | ({"image": image} if image else {})


def test_a_sample_with_an_image(dataset: Any, image_token_id: int) -> None:
    data = dataset(record("a", "<image>\nWhat?", image="red.png"))
    rendered = get_template("v1").render(data.records[0].conversations, data.tokenizer, image_token_id)
    sample = data[0]
    ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
    at = rendered.input_ids.index(image_token_id)
    assert ids == rendered.input_ids[:at] + [image_token_id] * VISUAL + rendered.input_ids[at + 1 :]
    assert labels == rendered.labels[:at] + [IGNORE_INDEX] * VISUAL + rendered.labels[at + 1 :]
    assert sample["input_ids"].dtype == sample["labels"].dtype == torch.long
    assert sample["pixel_values"].shape == (3, 4, 4)
    assert sample["pixel_values"][0].min() == 255
    assert sample["sample_id"] == "a"
    assert data.modality_lengths.tolist() == [4]


def test_a_sample_of_text(dataset: Any, image_token_id: int) -> None:
    sample = dataset(record("a", "What?"), image_folder=None)[0]
    assert "pixel_values" not in sample
    assert image_token_id not in sample["input_ids"]


def test_what_is_too_long_is_cut_at_the_end(dataset: Any) -> None:
    whole = dataset(record("a", "<image>\nWhat?", "word " * 100, image="red.png"))[0]
    cut = dataset(record("a", "<image>\nWhat?", "word " * 100, image="red.png"), max_length=150)[0]
    assert len(whole["input_ids"]) > 150
    for name in ("input_ids", "labels"):
        assert cut[name].tolist() == whole[name][:150].tolist()


def test_visual_tokens_are_never_cut(dataset: Any, image_token_id: int) -> None:
    sample = record("a7", "<image>\nWhat?", image="red.png")
    ids = dataset(sample)[0]["input_ids"].tolist()
    end = ids.index(image_token_id) + VISUAL
    assert dataset(sample, max_length=end + 1)[0]["input_ids"].tolist() == ids[: end + 1]
    with pytest.raises(UserError, match=rf"'a7'.*{VISUAL} visual tokens.*within {end} tokens; raise --model_max_len"):
        dataset(sample, max_length=end)[0]


def test_an_image_whose_size_decides_on_its_visual_tokens(dataset: Any, image_token_id: int, tmp_path: Path) -> None:
    Image.new("RGB", (9, 6)).save(tmp_path / "images" / "wide.png")
    sample = record("a7", "<image>\nWhat?", image="wide.png")
    ids = dataset(sample, num_image_tokens=lambda height, width: 100 * height + width)[0]["input_ids"].tolist()
    assert ids.count(image_token_id) == 609
    message = r"'a7'.*609 visual tokens of an image of 9 x 6 pixels, after 81 of .*--model_max_length, or choose fewer"
    with pytest.raises(UserError, match=message):
        dataset(sample, num_image_tokens=lambda height, width: 100 * height + width, max_length=600)[0]


@pytest.mark.parametrize(
    ("wrong", "culprit"),
    [
        (record("a7", "<image>\nWhat?"), "no image, and <image> in 1"),
        (record("a7", "What?", image="red.png"), "an image, and <image> in 0"),
        (record("a7", "<image>\nWhat?", "See <image>", image="red.png"), "<image> in 2"),
        (record("a7", "<image>\nWhat?", image="blue.png"), "blue.png does not exist"),
        (record("a7", "<image>\nWhat?", image="../data.json"), "leaves its folder"),
        ({"id": "a7", "conversations": []}, "empty"),
    ],
)
def test_a_wrong_sample_is_named(wrong: dict[str, Any], culprit: str, dataset: Any) -> None:
    data = dataset(record("fine", "What?"), wrong)
    assert data[0]["sample_id"] == "fine"
    with pytest.raises(UserError, match=rf"Sample 'a7' \(record 2 of .*data\.json\): .*{culprit}"):
        data[1]


def test_images_need_a_folder(dataset: Any) -> None:
    with pytest.raises(UserError, match=r"'a7'.*--image_folder"):
        dataset(record("a7", "<image>\nWhat?", image="red.png"), image_folder="")[0]


def test_an_error_in_a_worker_process_stays_a_user_error(dataset: Any) -> None:
    loader = DataLoader(dataset(record("a7", "<image>\nWhat?")), num_workers=1, collate_fn=Collator(0))
    with pytest.raises(UserError, match="'a7'"):
        list(loader)


def image(name: str, file: str = "red.png") -> dict[str, Any]:
    return record(name, "<image>\nWhat?", image=file)


def test_a_sample_of_the_same_modality_takes_the_place_of_a_bad_one(dataset: Any) -> None:
    records = [image("no image", "blue.png"), record("no text", "<image>\nWhat?")]
    for number in range(10):
        records += [image(f"image {number}"), record(f"text {number}", "What?")]
    data = dataset(*records, replace_bad=True)
    for position in range(len(data)):
        sample = data[position]
        assert ("pixel_values" in sample) == (data.modality_lengths[position] > 0)
        assert ("replaced" in sample) is (position < 2)
    by = data[0]["sample_id"]
    assert by.startswith("image")
    (replaced,) = data[0]["replaced"]
    assert replaced.message.startswith("The image ")
    assert replaced == Replaced(0, "no image", Problem.IMAGE_MISSING, replaced.message, by)


def test_which_sample_takes_the_place_depends_on_that_place_alone(dataset: Any) -> None:
    data = dataset(*[image(f"bad {n}", "blue.png") if n % 2 else image(f"good {n}") for n in range(60)])
    data.replace_bad = True
    chosen = {position: data[position] for position in range(1, 60, 2)}
    torch.manual_seed(7)
    order = list(reversed(range(60)))
    for workers in (0, 2):
        samples = list(DataLoader(data, sampler=order, num_workers=workers, collate_fn=lambda samples: samples[0]))
        for position, sample in zip(order, samples, strict=True):
            if position % 2:
                assert (sample["sample_id"], sample["replaced"]) == tuple(
                    chosen[position][name] for name in ("sample_id", "replaced")
                )
    assert len({sample["sample_id"] for sample in chosen.values()}) > 10  # not the same one in all places


def test_bad_ones_that_are_tried_in_its_place_are_told_too(dataset: Any) -> None:
    data = dataset(*[image(f"bad {n}", "blue.png") for n in range(30)], image("good"), replace_bad=True)
    tried = [len(data[position]["replaced"]) for position in range(30)]
    assert max(tried) > 1
    for position in range(30):
        replaced = data[position]["replaced"]
        assert replaced[0].position == position
        assert len({bad.position for bad in replaced}) == len(replaced)
        assert {bad.by for bad in replaced} == {data[position]["sample_id"]} == {"good"}


def test_where_all_are_bad_the_first_and_the_last_are_named(dataset: Any) -> None:
    data = dataset(image("first", "blue.png"), *[image("other", "green.png")] * 200, replace_bad=True)
    count = rf"Nor can {REPLACEMENTS} others be read that were tried in its place"
    with pytest.raises(UserError, match=rf"Sample 'first' .*blue\.png.*{count}; the last: Sample 'other' .*green\.png"):
        data[0]


def test_the_only_one_of_its_modality_has_no_replacement(dataset: Any) -> None:
    data = dataset(image("x7", "blue.png"), record("text", "What?"), replace_bad=True)
    with pytest.raises(UserError, match=r"^Sample 'x7' \(record 1 of .*blue\.png does not exist\.$"):
        data[0]


def test_a_setting_is_no_reason_to_replace_a_sample(dataset: Any) -> None:
    data = dataset(image("a7"), image("b"), image_folder="", replace_bad=True)
    with pytest.raises(UserError, match=r"'a7'.*--image_folder"):
        data[0]


def test_a_sample_that_teaches_nothing_is_read_as_in_llava(dataset: Any) -> None:
    sample = dataset(record("long", "word " * 100), record("text", "What?"), max_length=90, replace_bad=True)[0]
    assert sample["sample_id"] == "long"
    assert sample["labels"].eq(IGNORE_INDEX).all()
    assert "replaced" not in sample


@pytest.fixture
def odd_pixels() -> Callable[..., Any]:
    """An image processor that divides by the image's own brightness, which fails on black."""

    def process(image: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        pixels = torch.tensor(list(image.resize((4, 4)).tobytes())).float().view(1, 4, 4, 3).permute(0, 3, 1, 2)
        return {"pixel_values": pixels / pixels.max()}

    return process


def test_pixels_that_are_not_finite_make_a_sample_bad(
    dataset: Any, odd_pixels: Callable[..., Any], tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "black.png")
    data = dataset(image("dark", "black.png"), image("fine"))
    data.image_processor = odd_pixels
    with pytest.raises(UserError, match=r"'dark'.*black\.png has pixels that are not finite"):
        data[0]
    data.replace_bad = True
    assert data[0]["sample_id"] == "fine"
    assert data[0]["replaced"][0].problem is Problem.PIXELS_NOT_FINITE


def test_a_batch_lists_what_was_replaced(dataset: Any) -> None:
    data = dataset(*[image(f"bad {n}", "blue.png") for n in range(3)], image("good"), replace_bad=True)
    samples = [data[position] for position in range(4)]
    assert Collator(0)(samples)["replaced"] == [bad for sample in samples[:3] for bad in sample["replaced"]]
    assert "replaced" not in Collator(0)(samples[3:])


def test_a_batch_is_padded_and_keeps_its_images_in_order(dataset: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "images" / "blue.png")
    data = dataset(
        record("a", "<image>\nWhat?", "A long answer, longer than the others.", image="red.png"),
        record("b", "What?"),
        record("c", "<image>\nWhat?", image="blue.png"),
    )
    samples = [data[position] for position in range(3)]
    batch = Collator(pad_token_id=9)(copy.deepcopy(samples))
    assert batch["sample_ids"] == ["a", "b", "c"]
    assert batch["pixel_values"].shape == (2, 3, 4, 4)
    assert torch.equal(batch["pixel_values"][1], samples[2]["pixel_values"])
    for row, sample in enumerate(samples):
        length = len(sample["input_ids"])
        assert torch.equal(batch["input_ids"][row, :length], sample["input_ids"])
        assert torch.equal(batch["labels"][row, :length], sample["labels"])
        assert batch["input_ids"][row, length:].eq(9).all()
        assert batch["labels"][row, length:].eq(IGNORE_INDEX).all()
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)


def test_a_batch_of_several_views_is_filled_up_with_zeros() -> None:
    def sample(views: int) -> dict[str, Any]:
        ids = torch.tensor([1, 2])
        tiles = {"pixel_values": torch.full((views, 3, 4, 4), float(views)), "image_sizes": torch.tensor([8, views])}
        return {"input_ids": ids, "labels": ids, "sample_id": "", **tiles}

    text = {"input_ids": torch.tensor([1]), "labels": torch.tensor([1]), "sample_id": ""}
    batch = Collator(0)([sample(3), text, sample(5)])
    assert batch["pixel_values"].shape == (2, 5, 3, 4, 4)
    assert batch["pixel_values"].mean(dim=(2, 3, 4)).tolist() == [[3, 3, 3, 0, 0], [5, 5, 5, 5, 5]]
    assert batch["image_sizes"].tolist() == [[8, 3], [8, 5]]


def test_a_batch_of_text_has_no_pixels(dataset: Any) -> None:
    data = dataset(record("a", "What?"), record("b", "Who?"))
    assert "pixel_values" not in Collator(0)([data[0], data[1]])


def test_the_mask_does_not_take_padding_ids_in_the_text_for_padding() -> None:
    samples = [{"input_ids": torch.tensor([1, 0, 5]), "labels": torch.tensor([1, 0, 5]), "sample_id": "a"}]
    assert Collator(pad_token_id=0)(samples)["attention_mask"].tolist() == [[1, 1, 1]]
