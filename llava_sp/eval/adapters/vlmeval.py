"""LLaVA-SP in VLMEvalKit.

The kit finds models by name in `vlmeval.config.supported_VLM`, a dictionary; entering a
`functools.partial(LlavaSPVLM, model_path=PATH)` there is all it needs.
"""

from pathlib import Path
from typing import Any

from vlmeval.vlm.base import BaseModel

from llava_sp.eval.adapters.common import answers_in_order, load_checkpoint
from llava_sp.eval.inference import GenerationSettings
from llava_sp.eval.questions import Question
from llava_sp.utils.errors import UserError


class LlavaSPVLM(BaseModel):
    """A checkpoint that answers VLMEvalKit's questions, one at a time, as the kit asks them.

    Args:
        model_path: The checkpoint: a folder, or a name on the Hugging Face Hub.
        settings: How to generate; greedy by default.
        **arguments: See `load_checkpoint`.

    Raises:
        UserError: An argument is wrong, or the checkpoint cannot be loaded.
    """

    def __init__(self, model_path: str, settings: GenerationSettings | None = None, **arguments: Any) -> None:
        super().__init__()
        self.settings = settings or GenerationSettings(temperature=0)
        self.loaded = load_checkpoint(model_path, **arguments)

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """Answers a message: parts `{"type": "text" or "image", "value": text, or the image's path}`.

        Raises:
            UserError: There are several images, or a part of another type.
        """
        parts: dict[str, list[str]] = {"text": [], "image": []}
        for part in message:
            if part["type"] not in parts:
                raise UserError(f"{dataset}: LLaVA-SP takes text and images, no {part['type']}.")
            parts[part["type"]].append(part["value"])
        if len(parts["image"]) > 1:
            raise UserError(f"{dataset}: it asks about {len(parts['image'])} images; LLaVA-SP takes one a question.")
        image = Path(parts["image"][0]).resolve() if parts["image"] else None
        question = Question(str(dataset), "\n".join(parts["text"]), image.name if image else None)
        folder = image.parent if image else Path()
        return answers_in_order(self.loaded, [question], self.settings, image_folder=folder)[0]
