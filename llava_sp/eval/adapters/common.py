"""What the kits' adapters share: loading a checkpoint by arguments, and answers in the order of the questions."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_sp.data.conversation import Template
from llava_sp.eval.inference import Failure, GenerationSettings, generate_answers
from llava_sp.eval.questions import Question
from llava_sp.flags import add_model_flags, check_model_flags, load_model
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

Loaded = tuple[LlavaSPForCausalLM, LlavaSPProcessor, Template]


def load_checkpoint(path: str, **arguments: Any) -> Loaded:
    """Loads model, processor and conversation; each rank on its own GPU.

    Args:
        path: The checkpoint: a folder, or a name on the Hugging Face Hub.
        **arguments: As the flags of the evaluation's commands, with underscores: model_base, conv_mode, device, dtype,
            quantization, allow_other_base.

    Raises:
        UserError: There is no such argument, or the checkpoint cannot be loaded.
    """
    parser = argparse.ArgumentParser()
    add_model_flags(parser)
    options = parser.parse_args(["--model-path", path])
    if unknown := sorted(arguments.keys() - vars(options).keys()):
        known = ", ".join(sorted(vars(options).keys() - {"model_path"}))
        raise UserError(f"There is no argument {unknown[0]!r} for a LLaVA-SP checkpoint; there are {known}.")
    vars(options).update(arguments)
    check_model_flags(options)
    return load_model(options)


def answers_in_order(
    loaded: Loaded,
    questions: Sequence[Question],
    settings: GenerationSettings,
    *,
    image_folder: str | Path = ".",
    batch_size: int = 1,
) -> list[str]:
    """Answers questions, whose keys differ; returns the answers in the questions' order.

    The kits have no word for a question that cannot be answered: its answer is empty, and a warning says why.
    """
    model, processor, template = loaded
    answers = {}
    for question, answer in generate_answers(
        model,
        processor,
        questions,
        image_folder=image_folder,
        template=template,
        settings=settings,
        batch_size=batch_size,
    ):
        if isinstance(answer, Failure):
            logger.warning("%s: the answer is empty. %s", question.id, answer.reason)
            answer = ""
        answers[question.key] = answer
    return [answers[question.key] for question in questions]
