"""How the launcher tells of a rank that a signal ended."""

import signal
from pathlib import Path

import pytest

from llava_sp.utils.errors import UserError
from llava_sp.utils.ranks import run_torchrun


@pytest.mark.parametrize(
    ("ended", "told"),
    [(signal.SIGKILL, "Rank 0 was ended from outside by SIGKILL. Mend it."),
     (signal.SIGABRT, "Rank 0 crashed with SIGABRT. Mend it.")],
)  # fmt: skip
def test_a_crash_is_told_apart_from_an_end_from_outside(tmp_path: Path, ended: signal.Signals, told: str) -> None:
    script = tmp_path / "rank.sh"
    script.write_text(f"kill -{ended.value} $$")
    with pytest.raises(UserError) as error:
        run_torchrun(["--nproc_per_node=1", "--standalone", "--no-python", "/bin/sh", str(script)], mend="Mend it.")
    assert str(error.value) == told
