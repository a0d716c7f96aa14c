"""Question files: JSON lines `{"question_id", "image" (optional), "text"}`, as LLaVA's benchmarks have them."""

import io
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.data.images import decode_image, load_image
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import iter_json_lines, resolve_inside


@dataclass(frozen=True)
class Question:
    """One question, with an image or without.

    Attributes:
        id: Names the question in answers and errors, and seeds its sampling. Several questions about one image may
            share it, as in MME and TextVQA.
        text: The question as the user would ask it, without `<image>`.
        image: Path of the image under the image folder, or the encoded image itself, for some tables hold images;
            `None` for a question about no image.
        recorded: How answers files word the question, where LLaVA's do not have `text` there.
        fields: What answers files have of it beside id, prompt and text.
    """

    id: str | int
    text: str
    image: str | bytes | None = None
    recorded: str | None = None
    fields: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def prompt(self) -> str:
        """The question as answers files word it."""
        return self.text if self.recorded is None else self.recorded

    @property
    def key(self) -> tuple[str | int, str]:
        """Tells the question's answer from other answers: id and prompt. Two questions of one key are the same one."""
        return self.id, self.prompt


def read_questions(path: str | Path) -> list[Question]:
    """Reads a question file.

    Raises:
        UserError: The file is missing, a line is not a question, or two with the same id and text have different
            images; the message gives the line.
    """
    questions: list[Question] = []
    images: dict[tuple[str | int, str], Any] = {}
    for where, fields in iter_json_lines(path):
        question = _question(fields, where)
        if images.setdefault(question.key, question.image) != question.image:
            raise UserError(
                f"{where}: the question_id {question.id!r} is there twice, with the same text and another image."
            )
        questions.append(question)
    return questions


def take_chunk(questions: Sequence[Question], num_chunks: int, index: int) -> list[Question]:
    """Returns one of `num_chunks` consecutive parts, whose lengths differ by one at most.

    Every index is valid, also where there are fewer questions than chunks; together the chunks are all questions.

    Raises:
        UserError: There is no chunk of that index.
    """
    if not 0 <= index < num_chunks:
        raise UserError(f"--chunk-idx {index} must be from 0 to {num_chunks - 1}, for --num-chunks is {num_chunks}.")
    return list(questions[len(questions) * index // num_chunks : len(questions) * (index + 1) // num_chunks])


def check_images(questions: Sequence[Question], image_folder: str | Path) -> None:
    """Checks that every image is there, which is better known before the first answer than hours after it.

    Raises:
        UserError: An image is missing, or its path leaves the folder; the message names the question.
    """
    for question in questions:
        if isinstance(question.image, str) and not resolve_inside(image_folder, question.image).is_file():
            raise UserError(
                f"Question {question.id!r} asks about the image {question.image!r}, which is not in the image folder "
                f"{str(image_folder)!r}."
            )


def open_image(question: Question, image_folder: str | Path) -> Image | None:
    """Returns a question's image, see `load_image`; `None` if it has none.

    Raises:
        SampleError: The image cannot be read; the message names it.
    """
    if question.image is None:
        return None
    if isinstance(question.image, bytes):
        return decode_image(io.BytesIO(question.image), f"The image of question {question.id!r}")
    return load_image(image_folder, question.image)


def _question(fields: Any, where: str) -> Question:
    if not isinstance(fields, dict):
        raise UserError(f"{where} must be an object with question_id and text, one per line.")
    identity, text, image = fields.get("question_id"), fields.get("text"), fields.get("image")
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise UserError(f"{where}: question_id must be a string or a whole number, not {_shown(identity)}.")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: text must be a question that is not empty, not {_shown(text)}.")
    if image is not None and (not isinstance(image, str) or not image):
        raise UserError(f"{where}: image must be a path under the image folder, not {_shown(image)}.")
    if IMAGE_TOKEN in text:
        raise UserError(f"{where}: text must not hold {IMAGE_TOKEN!r}; the image goes first by itself.")
    return Question(identity, text, image)


def _shown(value: Any) -> str:
    return "nothing" if value is None else reprlib.repr(value)
