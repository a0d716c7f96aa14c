"""The state of the code that is running."""

import shutil
import subprocess
from pathlib import Path


def git_state() -> str | None:
    """Returns the commit of this source tree, with `-dirty` where files differ from it; None outside of one."""
    git = shutil.which("git")
    here = Path(__file__).parents[2]
    if git is None or not (here / ".git").exists():
        return None
    command = [git, "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
