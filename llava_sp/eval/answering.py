"""What every command that answers questions shares: the model, what decides its answers, and what goes wrong."""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_sp.data.conversation import Template
from llava_sp.eval.answers import AnswersFile, record
from llava_sp.eval.inference import Failure, GenerationSettings, generate_answers
from llava_sp.eval.provenance import checkpoint_digest
from llava_sp.eval.questions import Question
from llava_sp.flags import load_model
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.parts import absolute
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)


class Respondent:
    """The model that the flags name; it is loaded, once, when there is a question for it.

    Args:
        options: The flags of `add_model_flags`, and `batch_size`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.name = model_name(absolute(options.model_path))

    @cached_property
    def loaded(self) -> tuple[LlavaSPForCausalLM, LlavaSPProcessor, Template]:
        """The model, its processor and the conversation to ask in."""
        return load_model(self.options)

    def answer(
        self,
        questions: Sequence[Question],
        answers: AnswersFile,
        *,
        image_folder: str | Path,
        settings: GenerationSettings,
        title: str,
        quiet: bool = False,
    ) -> None:
        """Answers questions into a file; shows a progress bar.

        Args:
            questions: What to answer.
            answers: Where the answers and failures go, as they are ready.
            image_folder: The folder that the questions' image paths are relative to.
            settings: How to generate.
            title: What the progress bar is called.
            quiet: Whether to go without one.
        """
        if not questions:
            return
        model, processor, template = self.loaded
        with tqdm(total=len(questions), unit="question", desc=title, disable=quiet) as progress:
            for question, answer in generate_answers(
                model,
                processor,
                questions,
                image_folder=image_folder,
                template=template,
                settings=settings,
                batch_size=self.options.batch_size,
            ):
                if isinstance(answer, Failure):
                    answers.append_failure(question, answer.reason)
                else:
                    answers.append(record(question, answer, self.name))
                progress.update()


def what_decides_the_answers(
    options: argparse.Namespace, settings: GenerationSettings, image_folder: str | Path, questions: Sequence[Question]
) -> dict[str, Any]:
    """Returns all that an answers file must have in common with the run that continues it."""
    return {
        "model_path": absolute(options.model_path),
        "model_files": checkpoint_digest(options.model_path),
        "model_base": options.model_base and absolute(options.model_base),
        "dtype": options.dtype,
        "quantization": options.quantization,
        "conv_mode": options.conv_mode,
        **asdict(settings),
        "image_folder": str(Path(image_folder).resolve()),
        "questions": digest_of(questions),
    }


def report_failures(answers: AnswersFile) -> None:
    """Warns of questions that could not be answered."""
    if answers.failed:
        (identity, _), reason = next(iter(answers.failed.items()))
        logger.warning(
            "%d question(s) could not be answered, the first %r: %s All are in %s; the same command tries them again.",
            len(answers.failed),
            identity,
            reason,
            answers.failures_path,
        )


def model_name(path: str) -> str:
    """Returns a checkpoint's name in answers files, as LLaVA has it: `RUN`, or `RUN_checkpoint-N`. Only a label."""
    parts = path.split("/")
    return "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]


def digest_of(questions: Sequence[Question]) -> str:
    """Returns a hash of questions, their order included."""
    total = hashlib.sha256()
    for question in questions:
        total.update(repr(question).encode())
    return total.hexdigest()
