"""`python -m llava_sp.eval.model_vqa`: answers a question file, with LLaVA's flags and file formats."""

import argparse
import hashlib
import sys
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_sp.eval.answers import AnswersFile
from llava_sp.eval.flags import (
    add_generation_flags,
    add_model_flags,
    check_model_flags,
    generation_settings,
    load_model,
    parse_flags,
)
from llava_sp.eval.inference import GenerationSettings, generate_answers
from llava_sp.eval.questions import Question, check_images, read_questions, take_chunk
from llava_sp.model.parts import absolute
from llava_sp.utils.errors import command_line
from llava_sp.utils.logging import get_logger, setup_logging

logger = get_logger(__name__)


@command_line
def main() -> None:
    """Answers the questions that the command line names."""
    setup_logging()
    answer_file(parse(sys.argv[1:]))


def answer_file(options: argparse.Namespace) -> None:
    """Answers one chunk of a question file, except for what the answers file already holds.

    Everything that can be checked without the model is checked before it is loaded.

    Args:
        options: The flags from `parse`.

    Raises:
        UserError: An input is missing or malformed, or the answers file holds something else.
    """
    settings = generation_settings(options)
    check_model_flags(options)
    questions = take_chunk(read_questions(options.question_file), options.num_chunks, options.chunk_idx)
    check_images(questions, options.image_folder)
    answers = AnswersFile(options.answers_file, _what_decides_the_answers(options, settings, questions))

    remaining = [question for question in questions if question.id not in answers.answered]
    if answers.answered:
        logger.info("%s holds %d of %d answers already.", answers.path, len(answers.answered), len(questions))
    if remaining:
        _answer(remaining, answers, options, settings)
    answers.finish(question.id for question in questions)
    logger.info("%d answers in %s", len(questions), answers.path)


def _answer(
    questions: list[Question], answers: AnswersFile, options: argparse.Namespace, settings: GenerationSettings
) -> None:
    model, processor, template = load_model(options)
    name = model_name(absolute(options.model_path))
    done = len(answers.answered)
    with tqdm(total=done + len(questions), initial=done, unit="question", desc=name) as progress:
        for question, text in generate_answers(
            model,
            processor,
            questions,
            image_folder=options.image_folder,
            template=template,
            settings=settings,
            batch_size=options.batch_size,
        ):
            answers.append(_record(question, text, name))
            progress.update()


def _record(question: Question, text: str, name: str) -> dict[str, Any]:
    return {
        "question_id": question.id,
        "prompt": question.text,
        "text": text,
        "answer_id": uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {question.id!r}").hex,
        "model_id": name,
        "metadata": {},
    }


def model_name(path: str) -> str:
    """Returns a checkpoint's name in answers files, as LLaVA has it: `RUN`, or `RUN_checkpoint-N`. Only a label."""
    parts = path.split("/")
    return "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]


def _what_decides_the_answers(
    options: argparse.Namespace, settings: GenerationSettings, questions: list[Question]
) -> dict[str, Any]:
    """Returns all that an answers file must have in common with the run that continues it."""
    return {
        "model_path": absolute(options.model_path),
        "model_files": _fingerprint(options.model_path),
        "model_base": options.model_base and absolute(options.model_base),
        "dtype": options.dtype,
        "conv_mode": options.conv_mode,
        **asdict(settings),
        "image_folder": str(Path(options.image_folder).resolve()),
        "num_chunks": options.num_chunks,
        "chunk_idx": options.chunk_idx,
        "questions": _digest(questions),
    }


def _fingerprint(path: str) -> str | None:
    """Tells a folder's files from other files of the same names, without reading gigabytes of weights."""
    if not Path(path).is_dir():
        return None
    files = sorted((file.name, file.stat()) for file in Path(path).iterdir() if file.is_file())
    return _digest([(name, at.st_size, at.st_mtime_ns) for name, at in files])


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = argparse.ArgumentParser(prog="python -m llava_sp.eval.model_vqa", description="Answers a question file.")
    add_model_flags(parser)
    add = parser.add_argument
    add("--image-folder", default="", help="folder that the image paths are relative to (default: the current one)")
    add("--question-file", default="tables/question.jsonl", help="JSON lines: question_id, text, image (optional)")
    add("--answers-file", default="answer.jsonl", help="JSON lines; an interrupted file is continued")
    add("--num-chunks", type=int, default=1, help="parts that the questions are split into")
    add("--chunk-idx", type=int, default=0, help="the part to answer, from 0")
    add("--batch-size", type=int, default=1, help="questions at a time; the answers are the same as for 1")
    add_generation_flags(parser, max_new_tokens=1024)
    return parse_flags(parser, argv)


if __name__ == "__main__":
    main()
