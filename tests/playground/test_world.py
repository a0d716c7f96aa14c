"""The world on disk: LLaVA's formats, reproducible, reused or refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from llava_sp.playground.world import WorldOptions, build_world, with_wrong_images
from llava_sp.utils.errors import UserError

SMALL = WorldOptions(seed=1, train_images=6, caption_images=4, text_samples=2, held_out_images=3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("playground") / "world"
    assert build_world(folder, SMALL)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_data_is_in_llava_format(world):
    captions, conversations = (json.loads((world / name).read_text()) for name in ("pretrain.json", "finetune.json"))
    assert len(captions) == 4
    assert len(conversations) == 8
    for sample in captions:
        human, answer = sample["conversations"]
        assert human["value"].startswith("<image>\n")
        assert answer["value"].endswith(".")
    for sample in conversations:
        assert [turn["from"] for turn in sample["conversations"]] == ["human", "gpt"] * 10
        marks = sum(turn["value"].count("<image>") for turn in sample["conversations"])
        assert marks == ("image" in sample)
    assert sum("image" not in sample for sample in conversations) == 2
    assert len({sample["id"] for sample in conversations}) == 8
    for sample in captions + conversations:
        if "image" in sample:
            with Image.open(world / "images" / sample["image"]) as image:
                assert (image.size, image.mode, image.format) == ((72, 72), "RGB", "PNG")


def test_questions_and_annotations_belong_together(world):
    questions, annotations = lines(world / "questions.jsonl"), lines(world / "annotations.jsonl")
    assert len(questions) == 12
    assert len({question["question_id"] for question in questions}) == 12
    for question, annotation in zip(questions, annotations, strict=True):
        for ours, theirs in [("question_id", "question_id"), ("text", "text"), ("category", "task")]:
            assert question[ours] == annotation[theirs]
        assert "<image>" not in question["text"]
        assert "answer" not in question
        assert (world / "images" / question["image"]).is_file()


def test_control_shows_every_question_another_image(world):
    questions, control = lines(world / "questions.jsonl"), lines(world / "questions_wrong_image.jsonl")
    assert control == with_wrong_images(questions)
    for question, wrong in zip(questions, control, strict=True):
        assert wrong["image"] != question["image"]
        assert wrong | {"image": question["image"]} == question


def test_a_world_is_the_same_every_time_and_scenes_do_not_depend_on_their_number(world, tmp_path):
    build_world(tmp_path / "again", SMALL)
    for path in world.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(world)).read_bytes() == path.read_bytes()
    build_world(tmp_path / "larger", WorldOptions(1, 7, 4, 2, 4))
    first = "images/train/000003.png"
    assert (tmp_path / "larger" / first).read_bytes() == (world / first).read_bytes()
    build_world(tmp_path / "other", WorldOptions(2, 6, 4, 2, 3))
    with Image.open(tmp_path / "other" / first) as other, Image.open(world / first) as ours:
        assert not np.array_equal(np.asarray(other), np.asarray(ours))


def test_the_same_world_is_reused_also_with_hidden_indexes_beside_it(world):
    (world / ".finetune.json.index").write_text("made by training")
    assert not build_world(world, SMALL)


def test_other_things_in_the_output_folder_are_refused(world, tmp_path):
    with pytest.raises(UserError, match="holds another world"):
        build_world(world, WorldOptions(seed=5))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"is not a world of ours.*world\.json"):
        build_world(tmp_path, SMALL)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_changed_world_is_refused(tmp_path):
    build_world(tmp_path / "world", SMALL)
    (tmp_path / "world" / "images" / "train" / "000000.png").write_bytes(b"")
    with pytest.raises(UserError, match="was changed after it was built"):
        build_world(tmp_path / "world", SMALL)


def test_nothing_is_left_of_a_build_that_failed(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("llava_sp.playground.world._write_questions", fail)
    with pytest.raises(OSError, match="disk full"):
        build_world(tmp_path / "world", SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"train_images": 0}, "train_images"),
        ({"train_images": 3, "caption_images": 4}, "--caption-images 4 is more than --train-images 3"),
        ({"held_out_images": 1}, "--held-out-images must be 2 or more"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_options_are_named(options, culprit):
    with pytest.raises(UserError, match=culprit):
        WorldOptions(**options)


def test_command_line_builds_and_then_says_that_it_reuses(tmp_path):
    counts = ["--train-images", "2", "--caption-images", "1", "--text-samples", "0", "--held-out-images", "2"]
    command = [sys.executable, "-m", "llava_sp.playground", "build", "--output", str(tmp_path / "world"), *counts]
    assert "Built the tiny world" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Found, and reuse" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    refused = subprocess.run([*command, "--seed", "9"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "holds another world" in refused.stderr
    assert "Traceback" not in refused.stderr
