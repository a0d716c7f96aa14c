"""How many cases are made up, and of what."""

import os
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.families import LLAMA_3_TOKENS, QWEN_TOKENS
from tests.reliability.counting import COUNTS

CASES = 10_000
"""Cases that all fuzz tests run together, at the least."""

LONGER = os.environ.get("FUZZ_CASES")
"""Another number of cases, and other ones each time: `FUZZ_CASES=100000 pytest tests/reliability -k fuzz`."""

PLAN: Counter[str] = Counter()
"""Cases of each test when all run `CASES`."""


def fuzz(cases: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a test on made-up arguments: the same ones each time, unless the environment asks for more.

    Args:
        cases: How many, of `CASES` of all tests together.
        **strategies: Where the test's arguments come from; others are fixtures.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        name = f"{test.__module__.rpartition('.')[2]}: {test.__name__}"
        PLAN[name] = cases

        @wraps(test)
        def counted(*arguments: Any, **named: Any) -> None:
            test(*arguments, **named)
            COUNTS["fuzz cases"] += 1
            COUNTS[f"fuzz cases, {name}"] += 1

        profile = settings(
            max_examples=max(1, cases * int(LONGER or CASES) // CASES),
            deadline=None,
            derandomize=LONGER is None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        many = profile(given(**strategies)(counted))

        @wraps(many)
        def all_of_them(*arguments: Any, **named: Any) -> None:
            before = COUNTS[f"fuzz cases, {name}"]
            many(*arguments, **named)
            assert COUNTS[f"fuzz cases, {name}"] - before >= profile.max_examples

        return all_of_them

    return decorate


CONTROL = [
    *["<image>", "<image>\n", "<s>", "</s>", "<unk>", "<pad>", "<0x0A>", "▁", "▁▁"],
    *LLAMA_3_TOKENS,
    *QWEN_TOKENS,
]
"""What some tokenizer or template takes for more than text."""

SEPARATORS = [
    *["USER:", "USER: ", "ASSISTANT:", " ASSISTANT: ", "ASSISTANT: ", "###", "### Human: ", "\n### Assistant: "],
    *["[INST]", "[/INST]", "[INST] ", " [/INST]", "[/INST] ", "<<SYS>>\n", "\n<</SYS>>\n\n", "system", "{system}"],
    *["<|im_start|>assistant\n", "<|im_end|>\n", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"],
    *["{{", "}}", "{{ messages }}", "{% if x %}", "{%- endif -%}", "{#", "{% generation %}", "\\n", "\\", '"', "'"],
]
"""What stands between turns, and what Jinja reads."""

ODD = [
    *[" ", "  ", " " * 17, "\n", "\n\n", "\r\n", "\r", "\t", "\v", "\f", "\x1c", "\x85", "\xa0", "\u2028", "\u3000"],
    *["\0", "\x7f", "\u200b", "\u200d", "\u2060", "\ufeff", "\u202e", "\u061c", "\ufffd", "\ufffe", "\U0010ffff"],
    *["e\u0301", "\u0301", "a\u0323\u0307", "\u0307\u0323", "가", "가", "ﬁ", "Å", "ς", "İ", "ß"],
    *["👩‍👩‍👧", "🇩🇪", "😀", "שלום", "مرحبا", "你好", "नमस्ते", "…", "1234567", "don't", "It's"],
]
"""White space, marks that join or turn letters, letters with several forms."""

characters = st.characters(exclude_categories=["Cs"])

texts = st.one_of(
    st.text(characters, max_size=12),
    st.lists(st.one_of(st.sampled_from(CONTROL + SEPARATORS + ODD), st.text(characters, max_size=6)), max_size=6).map(
        "".join
    ),
    st.builds(lambda word, times: word * times, st.sampled_from(SEPARATORS + ODD), st.integers(0, 300)),
)
"""Any text that can be in a file, and often text that is made to be taken for something else."""
