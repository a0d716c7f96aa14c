"""Fixtures shared by all tests."""

import signal
from pathlib import Path

import peft
import pytest
import torch
import transformers

from tests.reliability import counting
from tests.tiny import make_parts


def pytest_configure(config: pytest.Config) -> None:
    """Has the counts of tests/reliability told at the end, by a process that reads this file and not theirs.

    In the background of a script, SIGINT is ignored, by all that is started there too; Ctrl-C is tested all the same.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.pluginmanager.is_registered(counting):
        config.pluginmanager.register(counting)


def pytest_report_header() -> str:
    """Says which versions are tested."""
    return f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a tiny random LLM and vision tower, made once; tests must not change them."""
    return make_parts(tmp_path_factory.mktemp("parts"))
