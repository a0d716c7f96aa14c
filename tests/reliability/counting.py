"""What was done how often, added up over test processes and told after the tests: a plugin for pytest."""

from collections import Counter
from typing import Any

import pytest

COUNTS: Counter[str] = Counter()
"""How often each thing was done; tests add to it."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Sends this process's counts to the one that reports, if that is another one."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = dict(COUNTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes the counts of a process of pytest-xdist."""
    COUNTS.update(getattr(node, "workeroutput", {}).get("counts", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tells the counts."""
    if COUNTS:
        terminalreporter.section("counts")
    for what, number in sorted(COUNTS.items()):
        terminalreporter.line(f"{number:>9,} {what}")
