"""Everything that is missing is told at once, with where to get it."""

from pathlib import Path

import pytest

from llava_sp.train.command_line import complete
from llava_sp.train.inputs import LLAVA_IMAGES, check_inputs
from llava_sp.utils.errors import UserError

Parts = tuple[Path, Path]


def test_nothing_is_said_where_all_is_there(tiny_parts: Parts, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text("[]")
    llm, tower = map(str, tiny_parts)
    check_inputs(
        {"model_name_or_path": llm, "vision_tower": tower, "data_path": str(data), "image_folder": str(tmp_path)}
    )


def test_arguments_that_no_run_can_do_without_are_asked_for() -> None:
    with pytest.raises(UserError, match="--data_path and --model_name_or_path and --vision_tower"):
        check_inputs({})


def test_all_that_is_missing_is_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        check_inputs(
            {
                "model_name_or_path": str(tmp_path / "llm"),
                "vision_tower": str(tmp_path / "tower"),
                "data_path": "playground/nowhere/llava_v1_5_mix665k.json",
                "eval_data_path": "held_out.json",
                "image_folder": str(tmp_path / "images"),
            }
        )
    for part in ("llm", "tower", "LLaVA-Instruct-150K", "held_out.json", str(tmp_path / "images"), "quickstart"):
        assert part in str(error.value)


def test_llavas_image_folders_are_each_looked_for(tiny_parts: Parts, tmp_path: Path) -> None:
    data = tmp_path / "llava_v1_5_mix665k.json"
    data.write_text("[]")
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    llm, tower = map(str, tiny_parts)
    with pytest.raises(UserError) as error:
        check_inputs(
            {"model_name_or_path": llm, "vision_tower": tower, "data_path": str(data), "image_folder": str(tmp_path)}
        )
    assert "coco" not in str(error.value)
    for folder in set(LLAVA_IMAGES) - {"coco/train2017"}:
        assert folder in str(error.value)


def test_a_checkpoint_to_start_from_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the checkpoint to start from.*pretrain\.sh"):
        check_inputs({"init_from": str(tmp_path), "data_path": __file__})


def test_names_that_no_file_can_have_are_missing_like_others(tmp_path: Path) -> None:
    name = "9" * 5000
    given = {"init_from": f"./{name}", "data_path": name, "image_folder": name}
    complete({**given, "output_dir": str(tmp_path), "lora_enable": True}, ranks=1)
    with pytest.raises(UserError, match=f"the image folder {name}"):
        check_inputs(given)
