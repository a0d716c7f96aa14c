"""Image preprocessing: the tower's own, after LLaVA's choice of what to do with images that are not square.

Shapes: S side of the tower's input in pixels.
"""

from typing import Any, Literal

import numpy as np
import PIL.Image
from transformers import BatchFeature, CLIPImageProcessorPil
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_transforms import divide_to_patches
from transformers.image_utils import ChannelDimension, SizeDict
from transformers.processing_utils import ImagesKwargs

from llava_sp.constants import MAX_PIXELS
from llava_sp.utils.errors import UserError

ImageAspectRatio = Literal["square", "pad", "anyres"]


class LlavaSPImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]  # a TypedDict
    """Options of `LlavaSPImageProcessor` beside those of every image processor.

    Args:
        image_aspect_ratio: `"square"` resizes the shorter edge and crops the centre; `"pad"` first pads the image to a
            square with the mean colour, so that nothing is cut off (LLaVA-1.5's choice for tuning); `"anyres"` gives
            several views in the tower's own resolution, as LLaVA-1.6 does.
        image_grid_pinpoints: For `"anyres"`: sizes `[height, width]` in pixels of the grids of tiles to choose from.
    """

    image_aspect_ratio: ImageAspectRatio
    image_grid_pinpoints: list[list[int]] | None


class LlavaSPImageProcessor(CLIPImageProcessorPil):
    """Resizes, crops, rescales and normalises images as CLIP does, by PIL on every machine.

    Torchvision's resize differs in the pixels, so its backend is never chosen, even where it is installed.

    Returns `pixel_values` [images, 3, S, S]. With `image_aspect_ratio="anyres"` they are [images, most views, 3, S, S]:
    each image resized to a square, then its tiles row by row, then zeros where another image has more; and
    `image_sizes` [images, 2] has the height and width of each image as it was.
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012 - as in the class above
    valid_kwargs = LlavaSPImagesKwargs
    image_aspect_ratio: ImageAspectRatio = "square"
    image_grid_pinpoints: list[list[int]] | None = None

    def process_image(self, image: Any, image_aspect_ratio: str | None = None, **kwargs: Any) -> np.ndarray:
        """Returns one image as an array [3, height, width], padded to a square if so configured.

        Raises:
            UserError: It has too many pixels; it is not decoded.
        """
        if isinstance(image, PIL.Image.Image) and image.width * image.height > MAX_PIXELS:
            raise UserError(
                f"An image has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are taken. Shrink it."
            )
        array = super().process_image(image, **kwargs)
        if (image_aspect_ratio or self.image_aspect_ratio) == "pad":
            array = pad_to_square(array, self.image_mean)
        return array

    def _preprocess(
        self,
        images: list[np.ndarray],
        image_aspect_ratio: str | None = None,
        image_grid_pinpoints: list[list[int]] | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        if image_aspect_ratio != "anyres":
            return super()._preprocess(images, return_tensors=return_tensors, **kwargs)
        if not image_grid_pinpoints:
            raise UserError("image_aspect_ratio 'anyres' needs image_grid_pinpoints, the grids to choose from.")
        side, resample = kwargs["crop_size"].height, kwargs["resample"]
        views = [self._views(image, image_grid_pinpoints, side, resample) for image in images]
        most = max(map(len, views))
        pixels = np.zeros((len(images), most, *views[0][0].shape), dtype=np.float32)
        # Every view has the tower's size already.
        as_it_is = {**kwargs, "do_resize": False, "do_center_crop": False}
        for row, image_views in zip(pixels, views, strict=True):
            row[: len(image_views)] = super()._preprocess(image_views, return_tensors=None, **as_it_is)["pixel_values"]
        sizes = [image.shape[-2:] for image in images]
        return BatchFeature({"pixel_values": pixels, "image_sizes": sizes}, tensor_type=return_tensors)

    def _views(self, image: np.ndarray, pinpoints: list[list[int]], side: int, resample: Any) -> list[np.ndarray]:
        """Returns an image squeezed to a square and then its tiles, each [3, side, side]."""
        grid = select_best_resolution(image.shape[-2:], pinpoints)
        height, width = get_patch_output_size(image, grid, ChannelDimension.FIRST)
        resized = self.resize(image, SizeDict(height=height, width=width), resample)
        top, left = (grid[0] - height) // 2, (grid[1] - width) // 2
        canvas = np.zeros((len(image), *grid), dtype=image.dtype)
        canvas[:, top : top + height, left : left + width] = resized
        base = self.resize(image, SizeDict(height=side, width=side), resample)
        return [base, *divide_to_patches(canvas, side)]


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
