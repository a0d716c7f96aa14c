"""When a short answer is the expected one."""


def is_right(given: str, expected: str) -> bool:
    """Compares answers without regard to case, outer blanks and a final full stop."""
    return given.strip().rstrip(".").lower() == expected.lower()
