"""When a short answer is the expected one."""

import pytest

from llava_sp.utils.matching import is_right


@pytest.mark.parametrize(
    ("given", "expected", "right"),
    [("Yes", "Yes", True), (" yes. ", "Yes", True), ("Yes, a red one", "Yes", False), ("", "No", False)],
)
def test_is_right(given, expected, right):
    assert is_right(given, expected) is right
