"""The quickstart's pictures: loss curves, and sample images with question, truth and answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file is wanted, not a window
from matplotlib import pyplot as plt
from PIL import Image


def draw_losses(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Draws a loss curve for each run, stage 1 and stage 2 side by side.

    Args:
        curves: Points (step, loss) by `"run/stage"`.
        path: The PNG to write.
    """
    stages = list(dict.fromkeys(name.split("/")[1] for name in curves))
    figure, axes = plt.subplots(1, len(stages), figsize=(5 * len(stages), 3.6), squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        for name, points in curves.items():
            run, of_stage = name.split("/")
            if of_stage == stage:
                axis.plot(*zip(*points, strict=True), label=run)
        axis.set(title=stage, xlabel="optimizer step", ylabel="loss per token (nats)")
        axis.grid(alpha=0.3)
        axis.legend()
    _finish(figure, path)


def draw_samples(samples: Sequence[Mapping[str, Any]], image_folder: Path, path: Path) -> None:
    """Draws images with what was asked, what is true, and what each model answered.

    Args:
        samples: Each with "image", "text", "truth", and "answers" by run.
        image_folder: Folder of the images.
        path: The PNG to write.
    """
    figure, axes = plt.subplots(1, len(samples), figsize=(4.2 * len(samples), 5), squeeze=False)
    for axis, sample in zip(axes[0], samples, strict=True):
        with Image.open(image_folder / sample["image"]) as image:
            axis.imshow(image.convert("RGB"), interpolation="nearest")
        answers = "\n".join(f"{run}: {answer}" for run, answer in sample["answers"].items())
        axis.set_title(f"{sample['text']}\n\ntruth: {sample['truth']}\n{answers}", fontsize=9)
        axis.axis("off")
    _finish(figure, path)


def _finish(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
