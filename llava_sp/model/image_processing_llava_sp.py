"""Image preprocessing: the tower's own, after LLaVA's choice of what to do with images that are not square."""

from typing import Any, Literal

import numpy as np
from transformers import CLIPImageProcessorPil
from transformers.processing_utils import ImagesKwargs

ImageAspectRatio = Literal["square", "pad"]
IMAGE_ASPECT_RATIOS = ("square", "pad")


class LlavaSPImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict
    """Options of `LlavaSPImageProcessor` beside those of every image processor.

    Args:
        image_aspect_ratio: `"square"` resizes the shorter edge and crops the centre; `"pad"` first pads the image to a
            square with the mean colour, so that nothing is cut off (LLaVA-1.5's choice for tuning).
    """

    image_aspect_ratio: ImageAspectRatio


class LlavaSPImageProcessor(CLIPImageProcessorPil):
    """Resizes, crops, rescales and normalises images as CLIP does, by PIL on every machine.

    Torchvision's resize differs in the pixels, so its backend is never chosen, even where it is installed.
    """

    valid_kwargs = LlavaSPImagesKwargs
    image_aspect_ratio: ImageAspectRatio = "square"

    def process_image(self, image: Any, image_aspect_ratio: str | None = None, **kwargs: Any) -> np.ndarray:
        """Returns one image as an array [3, height, width], padded to a square if so configured."""
        array = super().process_image(image, **kwargs)
        if (image_aspect_ratio or self.image_aspect_ratio) == "pad":
            array = pad_to_square(array, self.image_mean)
        return array


def pad_to_square(image: np.ndarray, mean: list[float]) -> np.ndarray:
    """Centres an image on a square of the mean colour.

    Args:
        image: Pixels [channels, height, width], 0 to 255.
        mean: Mean of each channel, 0 to 1.

    Returns:
        Pixels [channels, side, side], where side is the longer edge. An odd difference leaves the extra row below, or
        the extra column on the right.
    """
    channels, height, width = image.shape
    side = max(height, width)
    if height == width:
        return image
    colour = np.array([int(value * 255) for value in mean], dtype=image.dtype)
    square = np.broadcast_to(colour[:, None, None], (channels, side, side)).copy()
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = image
    return square
