"""The card: what a checkpoint says of itself, in `llava_sp.json` beside its weights."""

import dataclasses
import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, write_json

CARD_NAME = "llava_sp.json"
FORMAT = 1

Kind = Literal["full", "projector", "adapter"]


@dataclass
class Card:
    """What a checkpoint is and how it came to be.

    Args:
        kind: Which weights lie beside the card: `full` (all), `projector` (all that stage 1 trains), or `adapter`
            (LoRA and the whole projector).
        parts: Where the weights come from that do not lie here, by name or absolute path: `llm` and `vision_tower`,
            or `model` for a whole LLaVA-SP model.
        stage: The stage that trained it: `pretrain`, `finetune`, `finetune_lora`, or `import`.
        conversation_template: The conversation it was tuned with.
        spatial: The fields that make the variant.
        fingerprint: The weights of `llm` and `vision_tower` that it was trained with, where they do not lie here; see
            `llava_sp.model.fingerprint`. Empty in older cards.
        details: Whatever else its maker knows: data, hyper-parameters, git state, step.
        versions: Versions of the packages that wrote it.
        format: Version of this file's format.
    """

    kind: Kind
    parts: dict[str, str]
    stage: str
    conversation_template: str
    spatial: dict[str, Any]
    fingerprint: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: package_versions())
    format: int = FORMAT

    def write(self, folder: str | Path) -> None:
        """Writes the card into a checkpoint's folder."""
        write_json(Path(folder) / CARD_NAME, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> "Card":
        """Reads a card file.

        Raises:
            UserError: It is not one, or a later version of this package wrote it.
        """
        values = read_json(path)
        required = {"kind", "parts", "stage", "conversation_template", "spatial"}
        if not isinstance(values, dict) or values.get("format") != FORMAT or not required <= set(values):
            raise UserError(f"{path} is no card of format {FORMAT}. Was it written by a later version of llava_sp?")
        known = {item.name for item in dataclasses.fields(cls)}
        card = cls(**{name: value for name, value in values.items() if name in known})
        if problem := card._problem():
            raise UserError(f"{path} is no card: {problem}.")
        return card

    def _problem(self) -> str:
        """Says what is wrong with what was read; "" if nothing is."""
        if self.kind not in get_args(Kind):
            return f"its kind is {str(self.kind)[:80]!r}, not one of {', '.join(get_args(Kind))}"
        for name in ("parts", "spatial", "fingerprint", "details"):
            if not isinstance(getattr(self, name), dict):
                return f"{name!r} is no object of names and values"
        if not all(isinstance(home, str) for home in self.parts.values()):
            return "'parts' must name folders or repositories"
        if self.kind != "full" and "model" not in self.parts and not {"llm", "vision_tower"} <= set(self.parts):
            return "'parts' names neither a model nor an LLM and a vision tower"
        return ""


def package_versions() -> dict[str, str]:
    """Returns the installed versions of the packages that decide what a run computes."""
    found = {}
    for package in ("llava-sp", "torch", "transformers", "peft", "accelerate", "deepspeed", "tokenizers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
