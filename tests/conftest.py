"""Fixtures shared by all tests."""

from pathlib import Path

import peft
import pytest
import torch
import transformers

from tests.tiny import make_parts


def pytest_report_header() -> str:
    """Says which versions are tested."""
    return f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a tiny random LLM and vision tower, made once; tests must not change them."""
    return make_parts(tmp_path_factory.mktemp("parts"))
