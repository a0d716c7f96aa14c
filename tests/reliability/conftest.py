"""Runs to break."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.conftest import tokenizers  # noqa: F401
from tests.reliability.runs import Runs


@pytest.fixture(scope="session")
def runs(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Data, and a process that starts runs by forking."""
    started = Runs(tmp_path_factory.mktemp("runs"), tiny_parts)
    yield started
    started.close()
