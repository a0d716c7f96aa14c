"""`python -m llava_sp.eval.model_vqa`: answers a question file, with LLaVA's flags and file formats."""

import argparse
import sys
from collections.abc import Callable

from llava_sp.eval.answering import Respondent, report_failures, what_decides_the_answers
from llava_sp.eval.answers import AnswersFile
from llava_sp.eval.flags import add_generation_flags, generation_settings
from llava_sp.eval.questions import Question, check_images, read_questions, take_chunk
from llava_sp.flags import add_model_flags, check_model_flags, parse_flags
from llava_sp.utils.commands import summary
from llava_sp.utils.errors import command_line
from llava_sp.utils.logging import get_logger, setup_logging
from llava_sp.utils.ranks import end_with_launcher

logger = get_logger(__name__)


def command(parse: Callable[[list[str]], argparse.Namespace]) -> Callable[[], None]:
    """Returns the entry point of a command that answers the question file which its flags name."""

    @command_line
    def main() -> None:
        """Answers the questions that the command line names."""
        end_with_launcher()
        setup_logging()
        answer_file(parse(sys.argv[1:]))

    return main


def answer_file(options: argparse.Namespace) -> None:
    """Answers one chunk of a question file, except for what the answers file already holds.

    Everything that can be checked without the model is checked before it is loaded.

    Args:
        options: The flags of a parser from `make_parser`.

    Raises:
        UserError: An input is missing or malformed, or the answers file holds something else.
    """
    settings = generation_settings(options)
    check_model_flags(options)
    questions = take_chunk(options.read(options), options.num_chunks, options.chunk_idx)
    check_images(questions, options.image_folder)
    decisive = what_decides_the_answers(options, settings, options.image_folder, questions)
    chunk = {"num_chunks": options.num_chunks, "chunk_idx": options.chunk_idx}
    answers = AnswersFile(options.answers_file, {**decisive, **chunk})
    if answers.answered:
        logger.info("%s holds %d of %d answers already.", answers.path, len(answers.answered), len(questions))
    respondent = Respondent(options)
    respondent.answer(
        answers.remaining(questions),
        answers,
        image_folder=options.image_folder,
        settings=settings,
        title=respondent.name,
    )
    answers.finish(questions)
    report_failures(answers)
    logger.info("%d answers in %s", len(questions) - len(answers.failed), answers.path)


def make_parser(
    name: str,
    doc: str | None,
    read: Callable[[argparse.Namespace], list[Question]] = lambda options: read_questions(options.question_file),
    *,
    question_file: str = "JSON lines: question_id, text, image (optional)",
    max_new_tokens: int = 1024,
) -> argparse.ArgumentParser:
    """Returns a parser of the flags that LLaVA's commands share.

    Args:
        name: Name of the command's module.
        doc: That module's docstring.
        read: Reads the question file that the flags name.
        question_file: What that file holds.
        max_new_tokens: LLaVA's longest answer in this command.
    """
    parser = argparse.ArgumentParser(prog=f"python -m llava_sp.eval.{name}", description=summary(doc))
    parser.set_defaults(read=read)
    add_model_flags(parser)
    add = parser.add_argument
    add("--image-folder", default="", help="folder that the image paths are relative to (default: the current one)")
    add("--question-file", default="tables/question.jsonl", help=question_file)
    add("--answers-file", default="answer.jsonl", help="JSON lines; an interrupted file is continued")
    add("--num-chunks", type=int, default=1, help="parts that the questions are split into")
    add("--chunk-idx", type=int, default=0, help="the part to answer, from 0")
    add("--batch-size", type=int, default=1, help="questions at a time; no answer depends on it (default: %(default)s)")
    add_generation_flags(parser, max_new_tokens=max_new_tokens)
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    return parse_flags(make_parser("model_vqa", __doc__), argv)


main = command(parse)

if __name__ == "__main__":
    main()
