"""A trainer over ready-made samples, for tests of what happens within a step."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava_sp.data.collator import Collator
from llava_sp.model import loading
from llava_sp.train.arguments import ModelArguments, TrainArguments
from llava_sp.train.assembly import choose_trainables
from llava_sp.train.trainer import LlavaSPTrainer
from tests.tiny import IMAGE_SIZE

TINY = {"sfe_channels": 8}


class Samples(list):
    """Samples in memory, with the lengths that the sampler asks for."""

    @property
    def modality_lengths(self) -> np.ndarray:
        return np.array([len(sample["input_ids"]) * (1 if "pixel_values" in sample else -1) for sample in self])


def text_sample(name: str, length: int, supervised: int, seed: int = 0) -> dict[str, Any]:
    """A text-only sample of random ids; the last `supervised` positions are learned."""
    ids = torch.randint(10, 900, (length,), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[: length - supervised] = -100
    return {"input_ids": ids, "labels": labels, "sample_id": name}


def image_sample(name: str, image_token_id: int, image_tokens: int, supervised: int, seed: int = 0) -> dict[str, Any]:
    """A sample of one random image and a random text."""
    text = text_sample(name, supervised + 2, supervised, seed)
    image = torch.full((image_tokens,), image_token_id)
    pixels = torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))
    return {
        "input_ids": torch.cat([image, text["input_ids"]]),
        "labels": torch.cat([torch.full_like(image, -100), text["labels"]]),
        "pixel_values": pixels,
        "sample_id": name,
    }


def build_model(parts: tuple[Path, Path], variant: str = "cropping", **arguments: Any) -> tuple[Any, Any]:
    """A tiny model with the trainable parameters of a stage, and its processor."""
    model, processor = loading.build(*map(str, parts), variant=variant, overrides=TINY, dtype=torch.float32)
    torch.manual_seed(0)
    return choose_trainables(model, ModelArguments(**arguments)), processor


def make_trainer(model: Any, processor: Any, samples: list[dict[str, Any]], folder: Path, **arguments: Any) -> Any:
    """A trainer on the CPU, one step an epoch of all samples unless told otherwise."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": len(samples),
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        **arguments,
    }
    return LlavaSPTrainer(
        model=model,
        args=TrainArguments(**settings),
        processor=processor,
        stage="pretrain",
        train_dataset=Samples(samples),
        data_collator=Collator(processor.tokenizer.pad_token_id),
    )
