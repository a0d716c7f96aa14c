"""A process that has imported everything and starts training runs by forking, which takes no seconds of imports."""

import json
import os
import runpy
import signal
import sys
import time
from typing import Any

from llava_sp.utils.ranks import STOP_SIGNALS


def main() -> None:
    """Reads requests from standard input, one JSON object a line, and answers each by a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import deepspeed  # noqa: F401 - what a run imports
    import transformers.integrations.deepspeed
    import transformers.trainer  # noqa: F401

    import llava_sp.train.run  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        answers.write(f"{start(request, answers.fileno()) if 'argv' in request else wait(**request)}\n")
        answers.flush()


def start(request: dict[str, Any], answers: int) -> int:
    """Forks a process that runs a module; returns its number once it leads a group, or has ended.

    Args:
        request: What runs, and where.
        answers: The pipe for answers, which the child must not hold open: a reader would wait for its end too.
    """
    if child := os.fork():
        while os.getsid(child) != child and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.001)
        return child
    os.setsid()
    os.close(answers)
    for one in STOP_SIGNALS:  # in the background of a script, SIGINT is ignored, and that is inherited
        signal.signal(one, signal.SIG_DFL)
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    out = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 1
    try:
        sys.argv = [request["module"], *request["argv"]]
        for before in request["before"]:
            runpy.run_module(before, run_name="__main__")
        runpy.run_module(request["module"], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int, seconds: float) -> int:
    """Waits for a process's end; returns its exit code, the negative signal that ended it, or 999 if it goes on."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return 999
        time.sleep(0.01)


if __name__ == "__main__":
    main()
