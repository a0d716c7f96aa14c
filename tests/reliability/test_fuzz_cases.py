"""All fuzz tests together run as many cases as is promised; each counts its own."""

import importlib
from pathlib import Path

from tests.reliability.strategies import CASES, PLAN


def test_all_together_run_ten_thousand_cases() -> None:
    for file in Path(__file__).parent.glob("test_fuzz_*.py"):
        importlib.import_module(f"tests.reliability.{file.stem}")
    assert len({name.partition(":")[0] for name in PLAN}) == len(list(Path(__file__).parent.glob("test_fuzz_*.py"))) - 1
    assert sum(PLAN.values()) >= CASES
