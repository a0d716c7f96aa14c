"""What can be wrong with a sample, so that the same check serves training and the report before it."""

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
    EMPTY_ANSWER = "an answer is empty"
    NOTHING_LEARNED = "no answer token is left to learn from"

    @property
    def stops_training(self) -> bool:
        """Whether the sample cannot be read at all; else it is read, and teaches less than it seems to."""
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
