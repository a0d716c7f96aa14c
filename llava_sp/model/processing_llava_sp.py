"""The processor: image preprocessing and tokenizer together, with the right number of visual tokens."""

from pathlib import Path
from typing import Any

from transformers import LlavaProcessor
from transformers.processing_utils import MultiModalData

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.model.tiles import TileLayout
from llava_sp.model.trust import check_processor
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, write_json
from llava_sp.utils.tokenization import restore_sentencepiece_prefix


class LlavaSPProcessor(LlavaProcessor):
    """Prepares text and images for LLaVA-SP; a `LlavaProcessor` that knows of spatial tokens and of its conversation.

    Args:
        image_processor: A `LlavaSPImageProcessor`.
        tokenizer: The LLM's tokenizer, with `<image>` among its special tokens.
        patch_size: Side of the tower's patches in pixels.
        vision_feature_select_strategy: `"default"` if the tower has a class token that is dropped, else `"full"`.
        chat_template: Jinja template for `apply_chat_template`.
        image_token: The placeholder of an image in the text.
        num_additional_image_tokens: Tokens of an image beside its patches: the spatial ones, and the class token.
        conversation_template: Name of the conversation template that the model was tuned with, such as `"v1"`.
        patch_merge_type: How the tiles of an AnyRes image become one sequence, as in the model's configuration.
        **kwargs: Passed on to `LlavaProcessor`.

    Raises:
        UserError: The tokenizer has no `<image>`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = IMAGE_TOKEN,
        num_additional_image_tokens: int = 0,
        conversation_template: str = "v1",
        patch_merge_type: str = "flat",
        **kwargs: Any,
    ) -> None:
        if image_token not in tokenizer.get_vocab():
            raise UserError(
                f"The tokenizer {tokenizer.name_or_path!r} has no {image_token!r} token. Build the processor with "
                "llava_sp.model.loading, which adds it, or add it as a special token yourself."
            )
        restore_sentencepiece_prefix(tokenizer)
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            **kwargs,
        )
        self.conversation_template = conversation_template
        self.patch_merge_type = patch_merge_type

    def __call__(self, images: Any = None, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Prepares text and images as transformers does; a text that brings its begin token along gets no second one.

        Serving engines hand over the text of a rendered conversation, which begins with it.
        """
        begin = self.tokenizer.bos_token
        first = text[0] if isinstance(text, list) and text else text
        if begin and isinstance(first, str) and first.startswith(begin):
            kwargs.setdefault("add_special_tokens", False)
        return super().__call__(images, text, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Loads a processor as transformers does, but asks nobody whether code that its files name may run."""
        where = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
        check_processor(pretrained_model_name_or_path, **{name: kwargs[name] for name in where if name in kwargs})
        return super().from_pretrained(pretrained_model_name_or_path, *args, **{"trust_remote_code": False, **kwargs})

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Saves the processor as transformers does, with its tokenizer as it is.

        `AutoTokenizer` would build a LLaMA tokenizer anew, and differently; the class written here takes
        `tokenizer.json` at its word.
        """
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / "tokenizer_config.json"
        write_json(path, read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"})
        return saved

    @property
    def tile_layout(self) -> TileLayout | None:
        """How an image is laid out on several tiles (AnyRes); `None` for one tile an image."""
        if self.image_processor.image_aspect_ratio != "anyres":
            return None
        return TileLayout(
            self.image_processor.image_grid_pinpoints,
            self.patch_merge_type,
            tile_side=self.side,
            grid_side=self.side // self.patch_size,
            spatial_tokens=self.num_image_tokens - (self.side // self.patch_size) ** 2,
        )

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens of one view, T + N: 6 + 576 in the paper's models."""
        has_class_token = self.vision_feature_select_strategy == "default"
        return (self.side // self.patch_size) ** 2 + self.num_additional_image_tokens - has_class_token

    def num_image_tokens_of(self, height: int, width: int) -> int:
        """Returns the number of visual tokens of an image of some pixels; its size matters for AnyRes alone."""
        layout = self.tile_layout
        return self.num_image_tokens if layout is None else layout.count_tokens(height, width)

    @property
    def side(self) -> int:
        """Side of a view in pixels."""
        return self.image_processor.crop_size["height"]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """Returns as many `<image>` as an image has visual tokens; transformers calls it when it expands a text."""
        if "image_sizes" not in image_inputs:
            return super().replace_image_token(image_inputs, image_idx, **kwargs)
        height, width = map(int, image_inputs["image_sizes"][image_idx])
        return self.image_token * self.num_image_tokens_of(height, width)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """Counts the visual tokens of images of some sizes (height, width); serving engines ask for it."""
        counted = super()._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if image_sizes is not None and self.tile_layout is not None:
            counted.num_image_tokens = [self.num_image_tokens_of(height, width) for height, width in image_sizes]
        return counted
