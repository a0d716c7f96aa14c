"""The kits, where they are installed; else the part of their interfaces that the adapters stand on."""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from llava_sp.data.conversation import get_template
from llava_sp.eval.inference import GenerationSettings, generate_answers
from llava_sp.model.loading import load
from tests.eval.conftest import QUESTIONS

GREEDY = GenerationSettings(temperature=0, max_new_tokens=12)
SAMPLED = GenerationSettings(temperature=0.7, top_p=0.9, max_new_tokens=12)


class Lmms:
    """`lmms_eval.api.model.lmms` of 0.7.3."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    @property
    def rank(self) -> int:
        return self._rank


@dataclass(frozen=True)
class ModelManifest:
    """`lmms_eval.models.registry_v2.ModelManifest` of 0.7.3."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class BaseModel:
    """`vlmeval.vlm.base.BaseModel` of 0.0.20; the kit calls `generate`."""

    def __init__(self) -> None:
        self.dump_image_func = None

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        return self.generate_inner(message, dataset)


STUBS: dict[str, dict[str, Any]] = {
    "lmms_eval.api.model": {"lmms": Lmms},
    "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    "vlmeval.vlm.base": {"BaseModel": BaseModel},
}


@pytest.fixture(scope="session")
def adapter() -> Iterator[Callable[[str], ModuleType]]:
    """Imports the adapter for a kit."""
    with pytest.MonkeyPatch.context() as patch:

        def import_adapter(kit: str) -> ModuleType:
            name = f"llava_sp.eval.adapters.{kit}"
            if importlib.util.find_spec(kit) is None:
                for path, members in STUBS.items():
                    parts = path.split(".")
                    for end in range(1, len(parts) + 1):
                        if parts[0] == kit and ".".join(parts[:end]) not in sys.modules:
                            patch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
                    if parts[0] == kit:
                        vars(sys.modules[path]).update(members)
                patch.delitem(sys.modules, name, raising=False)
            return importlib.import_module(name)

        yield import_adapter


@pytest.fixture(scope="session")
def expected(checkpoint, image_folder) -> Callable[[GenerationSettings], dict[Any, Any]]:
    """What the evaluation's own commands answer to `QUESTIONS`, one by one."""
    model, processor = load(checkpoint)

    def answers(settings: GenerationSettings) -> dict[Any, Any]:
        template = get_template("v1")
        found = generate_answers(
            model, processor, QUESTIONS, image_folder=image_folder, template=template, settings=settings
        )
        return {question.id: text for question, text in found}

    return answers
