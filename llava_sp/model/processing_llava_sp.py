"""The processor: image preprocessing and tokenizer together, with the right number of visual tokens."""

from typing import Any

from transformers import LlavaProcessor

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.utils.errors import UserError
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

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens of one image, T + N: 6 + 576 in the paper's models."""
        return self._get_num_multimodal_tokens(image_sizes=[(1, 1)])["num_image_tokens"][0]
