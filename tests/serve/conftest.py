"""One tiny model as a checkpoint of each kind, and an image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_sp.data.conversation import get_template
from llava_sp.model import loading, trainable


@pytest.fixture(scope="session")
def checkpoints(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a full, a projector and an adapter checkpoint with the conversation `v1`."""
    root = tmp_path_factory.mktemp("served")
    llm, tower = map(str, tiny_parts)
    template = get_template("v1").chat_template()
    model, processor = loading.build(llm, tower, overrides={"sfe_channels": 8}, chat_template=template)
    loading.save(model, processor, root / "full", stage="finetune")
    trainable.set_trainable(model, ["projector"])
    loading.save(model, processor, root / "projector", stage="pretrain")
    tuned = trainable.add_lora(loading.load(root / "projector")[0], rank=4, alpha=8, dropout=0.0)
    loading.save(tuned, processor, root / "adapter", stage="finetune_lora")
    return {kind: root / kind for kind in ("full", "projector", "adapter")}


@pytest.fixture(scope="session")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide image of noise."""
    path = tmp_path_factory.mktemp("images") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 255, (30, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
