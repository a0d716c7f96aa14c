"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

from tests.tiny import make_parts


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a tiny random LLM and vision tower, made once; tests must not change them."""
    return make_parts(tmp_path_factory.mktemp("parts"))
