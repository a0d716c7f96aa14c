"""Data and settings of runs that take a second."""

import json
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def short_run(tmp_path: Path) -> list[str]:
    """Flags of a run over six samples in `tmp_path`, two epochs of three steps; parts, stage and output are to come."""
    records = []
    for number in range(6):
        Image.new("RGB", (20, 30), (40 * number, 0, 90)).save(tmp_path / f"{number}.png")
        turns = [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": f"number {number} " * number + "."},
        ]
        records.append({"id": f"record{number}", "image": f"{number}.png", "conversations": turns})
    (tmp_path / "data.json").write_text(json.dumps(records))
    settings = """
        --use_cpu --per_device_train_batch_size 2 --num_train_epochs 2 --save_steps 1 --learning_rate 1e-2
        --logging_steps 1 --disable_tqdm True
    """
    return ["--image_folder", str(tmp_path), "--data_path", str(tmp_path / "data.json"), *settings.split()]
