"""What can be wrong with a sample, so that the same check serves training and the report before it."""

from dataclasses import dataclass
from enum import StrEnum

from llava_sp.utils.errors import UserError


class Problem(StrEnum):
    """The kinds of trouble that a sample can be in; the value is what a report prints."""

    IMAGE_OUTSIDE = "image path leads out of the image folder"
    IMAGE_MISSING = "image file is missing"
    IMAGE_CORRUPT = "image file cannot be decoded"
    IMAGE_TOO_LARGE = "image has too many pixels"
    IMAGE_COUNT = "<image> does not match the images (one <image> with an image, none without)"
    ROLES = "turns are not human, gpt, human, gpt ..."
    NO_ROOM = "visual tokens do not fit into the length limit"
    PIXELS_NOT_FINITE = "prepared pixels are not finite"
    EMPTY_ANSWER = "an answer is empty"
    NOTHING_LEARNED = "no answer token is left to learn from"

    @property
    def unreadable(self) -> bool:
        """Whether the sample cannot be read at all; else training reads it, as LLaVA does, for the little it teaches.

        One with nothing to learn adds nothing to the loss. That is no fault of its own: a longer limit may mend it.
        """
        return self not in (Problem.EMPTY_ANSWER, Problem.NOTHING_LEARNED)


class SampleError(UserError):
    """A sample that cannot be read.

    Args:
        problem: The kind of trouble.
        message: One sentence that names the culprit.
    """

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.problem = problem

    def __reduce__(self) -> tuple[type["SampleError"], tuple[Problem, str]]:
        """Both arguments cross to another process, where the base class would send the message alone."""
        return type(self), (self.problem, str(self))


@dataclass(frozen=True)
class Replaced:
    """A sample that cannot be read, and what training read in its place.

    Attributes:
        position: Its position in the data, from 0.
        sample_id: Its name.
        problem: The kind of trouble.
        message: One sentence that names the culprit.
        by: The name of the sample that took its place.
    """

    position: int
    sample_id: str
    problem: Problem
    message: str
    by: str
