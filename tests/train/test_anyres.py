"""AnyRes in training: LLaVA's flags, a start from one tile, and what is refused when continuing."""

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_sp.model import loading
from llava_sp.model.tiles import default_pinpoints
from llava_sp.train import assembly
from llava_sp.train.run import train
from llava_sp.utils.errors import UserError
from tests.tiny import IMAGE_SIZE as SIDE
from tests.train.test_assembly import parse

Parts = tuple[Path, Path]

ANYRES = ["--image_aspect_ratio", "anyres"]
UNPAD = [*ANYRES, "--mm_patch_merge_type", "spatial_unpad"]
LORA = ["--lora_enable", "--lora_r", "2"]


def from_parts(tiny_parts: Parts) -> list[str]:
    llm, tower = map(str, tiny_parts)
    return ["--model_name_or_path", llm, "--vision_tower", tower, "--sfe_channels", "8"]


@pytest.fixture(scope="module")
def one_tile(tiny_parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stage 1 checkpoint that saw one tile an image."""
    folder = tmp_path_factory.mktemp("one_tile")
    run = parse(folder, *from_parts(tiny_parts), "--tune_mm_mlp_adapter")
    loading.save(*assembly.load_model(run, resume=None), folder / "stage_1", stage="pretrain")
    return str(folder / "stage_1")


def test_stage_2_on_tiles_after_a_stage_1_on_one(one_tile: str, short_run: list[str], tmp_path: Path) -> None:
    for number, size in enumerate([(90, 90), (20, 90), (150, 30), (30, 30)]):
        Image.new("RGB", size, (60 * number, 0, 90)).save(tmp_path / f"{number}.png")
    records = json.loads((tmp_path / "data.json").read_text())
    text_alone = [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}]
    records[4:] = [{"id": f"text{number}", "conversations": text_alone} for number in range(2)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    output = tmp_path / "out"
    start = ["--init_from", one_tile, *LORA, *UNPAD, "--lora_dropout", "0", "--gradient_checkpointing"]
    train(
        [*short_run, *start, "--num_train_epochs", "4", "--group_by_modality_length", "--output_dir", str(output)],
        ranks=1,
    )

    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    losses = [line["loss"] for line in history if "loss" in line]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    model, processor = loading.load(output)
    first, _ = loading.load(output / "checkpoint-1")
    row_end, before = (one.model.multi_modal_projector.image_newline for one in (model, first))
    assert (row_end - before).abs().max() > 0.01
    assert processor.tile_layout == model.config.tile_layout
    assert processor.tile_layout.pinpoints == default_pinpoints(SIDE)
    assert processor.tile_layout.merge_type == "spatial_unpad"


@pytest.mark.parametrize("flags", [UNPAD, ANYRES, []])
def test_a_plan_has_the_parameters_of_the_model(
    one_tile: str, tiny_parts: Parts, tmp_path: Path, flags: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for start in (["--init_from", one_tile], from_parts(tiny_parts)):
            run = parse(tmp_path, *start, *LORA, *flags)
            planned, processor = assembly.plan_model(run)
            loaded, its_processor = assembly.load_model(run, resume=None)
            shapes = [{name: (p.shape, p.requires_grad) for name, p in m.named_parameters()} for m in (planned, loaded)]
            assert shapes[0] == shapes[1]
            assert any("image_newline" in name for name in shapes[0]) is (flags == UNPAD)
            assert processor.tile_layout == its_processor.tile_layout == loaded.config.tile_layout
    said = [record.message for record in caplog.records if "image_newline" in record.message]
    assert len(said) == (flags == UNPAD)  # once, where only the row end is new


def test_grids_are_given_as_in_llava_width_first(tiny_parts: Parts, tmp_path: Path) -> None:
    grids = ["--image_grid_pinpoints", f"[({SIDE}, {2 * SIDE}), ({3 * SIDE}, {SIDE})]"]
    model, processor = assembly.plan_model(parse(tmp_path, *from_parts(tiny_parts), *ANYRES, *grids))
    assert model.config.image_grid_pinpoints == [[2 * SIDE, SIDE], [SIDE, 3 * SIDE]]
    assert processor.image_processor.image_grid_pinpoints == model.config.image_grid_pinpoints


def test_a_checkpoint_of_several_tiles_stays_one(tiny_parts: Parts, tmp_path: Path) -> None:
    run = parse(tmp_path, *from_parts(tiny_parts), *UNPAD, "--tune_mm_mlp_adapter")
    model, processor = assembly.load_model(run, resume=None)
    loading.save(model, processor, tmp_path / "tiles", stage="pretrain")
    start = ["--init_from", str(tmp_path / "tiles"), *LORA]
    for flags in ([], ["--image_aspect_ratio", "pad"], [*ANYRES, "--mm_patch_merge_type", "spatial"]):
        with pytest.raises(
            UserError, match="several tiles in the order 'spatial_unpad'; give --image_aspect_ratio any"
        ):
            assembly.load_model(parse(tmp_path, *start, *flags), resume=None)
    grids = ["--image_grid_pinpoints", f"[({SIDE}, {SIDE})]"]
    again, processor = assembly.load_model(parse(tmp_path, *start, *ANYRES, *grids), resume=None)
    assert processor.tile_layout.pinpoints == [[SIDE, SIDE]]  # no parameter depends on them
    row_ends = [m.get_base_model().model if m is again else m.model for m in (model, again)]
    assert torch.equal(*(one.multi_modal_projector.image_newline for one in row_ends))
    with pytest.raises(UserError, match=rf"no .height, width. in multiples of the tower's {SIDE} pixels"):
        assembly.load_model(parse(tmp_path, *start, *ANYRES, "--image_grid_pinpoints", "[(50, 50)]"), resume=None)


def test_a_lora_of_one_tile_cannot_grow_a_row_end(one_tile: str, tmp_path: Path) -> None:
    model, processor = assembly.load_model(parse(tmp_path, "--init_from", one_tile, *LORA), resume=None)
    loading.save(model, processor, tmp_path / "lora", stage="finetune_lora")
    with pytest.raises(UserError, match=r"saw one tile an image.*merge-lora"):
        assembly.load_model(parse(tmp_path, "--init_from", str(tmp_path / "lora"), *LORA, *UNPAD), resume=None)
    continued, _ = assembly.load_model(parse(tmp_path, "--init_from", str(tmp_path / "lora"), *LORA, *ANYRES), None)
    assert continued.get_base_model().config.tile_layout.merge_type == "flat"
