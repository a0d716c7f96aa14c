"""A tiny checkpoint on disk, a few images, and questions of several lengths about them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_sp.eval.questions import Question
from llava_sp.model import loading

QUESTIONS = [
    Question(1, "What is in the image?", "a.png"),
    Question("two", "Which of the two coloured shapes on the left is above the other one? Say its colour.", "b.png"),
    Question(3, "What is two and two?"),
    Question(4, "Colour?", "c.png"),
    Question(5, "Name a colour that is neither red nor blue, and say why you chose this one."),
    Question(6, "How many cats are there? Answer the question using a single word or phrase.", "a.png"),
    Question(7, "Is there a digit?", "b.png"),
]


@pytest.fixture(scope="session")
def checkpoint(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a full tiny checkpoint, tuned with the conversation `v1` as far as it says."""
    llm, tower = tiny_parts
    model, processor = loading.build(str(llm), str(tower), overrides={"sfe_channels": 8})
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-llava"
    loading.save(model, processor, folder, stage="finetune")
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of noise: of tower size, wide, and high."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name, shape in {"a.png": (48, 48, 3), "b.png": (30, 70, 3), "c.png": (90, 40, 3)}.items():
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    """`QUESTIONS` as a file."""
    path = tmp_path / "questions.jsonl"
    rows = [{"question_id": q.id, "text": q.text, **({"image": q.image} if q.image else {})} for q in QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
