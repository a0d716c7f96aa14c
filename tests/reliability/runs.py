"""Real training runs of a tiny model that start in a fraction of a second, to be cut, damaged and compared."""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
WORDS = "red blue green seven three two circle square left right above below of the a is there".split()

LORA = """
--use_cpu --lora_enable True --lora_r 4 --lora_dropout 0.1 --sfe_channels 8 --learning_rate 1e-2 --mm_projector_lr 1e-3
--image_aspect_ratio pad --group_by_modality_length True --per_device_train_batch_size 2 --global_batch_size 4
--num_train_epochs 2 --logging_steps 1 --save_steps 1 --disable_tqdm True --warmup_ratio 0.1 --check_data off
""".split()
"""LoRA with dropout, mixed modalities, accumulation, two epochs of four steps."""

PROJECTOR = [*LORA, "--lora_enable", "False", "--tune_mm_mlp_adapter", "--version", "v1"]
"""Stage 1, of the same shape."""

ZERO_2 = ["--deepspeed", str(ROOT / "configs" / "zero2.json")]

AT_MOST = 600.0
"""Seconds after which a wait fails a test: far more than a slow machine takes."""


def wait_until(condition: Callable[[], bool], seconds: float = AT_MOST) -> bool:
    """Waits until a condition holds; returns whether it does in time."""
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return met


def make_data(folder: Path, samples: int = 16) -> None:
    """Writes `data.json` and `images/`; of the samples, every third has no image."""
    chosen = random.Random(0)  # noqa: S311
    (folder / "images").mkdir(parents=True)
    records = []
    for number in range(samples):
        text = " ".join(chosen.choices(WORDS, k=chosen.randrange(2, 12)))
        record: dict[str, Any] = {"id": f"sample{number}", "image": f"{number}.png"}
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": text}]
        if number % 3 == 0:
            del record["image"]
            turns[0]["value"] = "What is it?"
        else:
            colour = tuple(chosen.randrange(256) for _ in range(3))
            Image.new("RGB", (60, 40), colour).save(folder / "images" / f"{number}.png")
        records.append({**record, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))


@dataclass
class Run:
    """Processes of a run that has been started.

    Args:
        processes: Their numbers, by rank.
        output: What they write to their terminal.
        _runs: What has started them.
        _port: Holds the port by which they meet, until all have ended.
    """

    processes: list[int]
    output: Path
    _runs: "Runs"
    _port: socket.socket
    _ended: dict[int, int] = field(default_factory=dict)

    @property
    def codes(self) -> list[int]:
        """The exit codes of the ranks that have been waited for."""
        return [self._ended[rank] for rank in sorted(self._ended)]

    def wait(self, seconds: float = AT_MOST) -> "Run":
        """Waits for the end of all ranks; one that takes longer is killed, and its code is 999."""
        for rank in range(len(self.processes)):
            self.wait_for(rank, seconds)
        self._port.close()
        return self

    def wait_for(self, rank: int, seconds: float = AT_MOST) -> int:
        """Waits for the end of one rank; returns its exit code."""
        if rank not in self._ended:
            self._ended[rank] = self._runs.ask(process=self.processes[rank], seconds=seconds)
        return self._ended[rank]

    def kill(self) -> None:
        """Kills the ranks that nobody has waited for, and what they have started."""
        for rank, process in enumerate(self.processes):
            if rank not in self._ended:
                with suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
        self._port.close()

    def tells(self, text: str, times: int = 1, seconds: float = AT_MOST) -> bool:
        """Waits until the ranks together have written a text so many times; returns whether they have in time."""
        return wait_until(lambda: self.text.count(text) >= times, seconds)

    @property
    def text(self) -> str:
        """All that the ranks have written to their terminal."""
        return self.output.read_text(errors="replace")


class Runs:
    """Starts runs; one process of it has imported everything, and forks.

    Args:
        folder: Where data and outputs lie.
        parts: Folders of the LLM and the vision tower.
    """

    def __init__(self, folder: Path, parts: tuple[Path, Path]) -> None:
        self.folder = folder
        self._parts = parts
        self._started: list[Run] = []
        make_data(folder)
        environment = {
            **os.environ,
            **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            **{"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)},
        }
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.zygote"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Ends the runs that nobody has waited for, as when a test has failed, and the process that forks."""
        for run in self._started:
            run.kill()
        with self._zygote:
            assert self._zygote.stdin is not None
            self._zygote.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._zygote.wait(60)
            self._zygote.kill()

    def ask(self, **request: Any) -> int:
        """Sends a request; returns the answer."""
        assert self._zygote.stdin is not None and self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(request) + "\n")
        self._zygote.stdin.flush()
        return int(self._zygote.stdout.readline())

    def start(self, output: str, *flags: str, ranks: int = 1, recipe: list[str] = LORA, fault: str = "") -> Run:
        """Starts a training and returns at once.

        Args:
            output: Name of the output folder.
            *flags: What is added to the recipe.
            ranks: Number of processes.
            recipe: The flags of the run.
            fault: What goes wrong in each rank; see `faults.py`.
        """
        llm, tower = self._parts
        files = ["--data_path", str(self.folder / "data.json"), "--image_folder", str(self.folder / "images")]
        parts = ["--model_name_or_path", str(llm), "--vision_tower", str(tower)]
        argv = [*parts, *files, *recipe, "--output_dir", str(self.folder / output), *flags]
        port = _hold_port()
        run = Run([], self.folder / f"output-{len(self._started) + 1}.txt", self, port)
        run.output.touch()
        self._started.append(run)
        group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port.getsockname()[1])}
        for rank in range(ranks):
            own = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            run.processes.append(
                self.ask(
                    module="llava_sp.train",
                    argv=argv,
                    environment={"FAULT": fault, **own},
                    folder=str(self.folder),
                    output=str(run.output),
                    before=["tests.reliability.faults"] if fault else [],
                )
            )
        return run

    def run(self, output: str, *flags: str, **options: Any) -> Run:
        """Runs a training to its end; see `start`."""
        return self.start(output, *flags, **options).wait()

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def _hold_port() -> socket.socket:
    """Returns a socket at a free port that nobody else is given while it is open; who names the port may listen there.

    So may torch's store, for both say that they share the address and this one does not listen.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def bits(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of a checkpoint or result that decides on what comes of it.

    Left out are files that tell of times and places: logs, cards, manifests.
    """
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix in (".safetensors", ".pt", ".pth", ".bin") and not name.startswith(("checkpoint-", ".")):
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Returns a run's log without what depends on the clock."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    timed = ("tokens_per_second", "samples_per_second")
    return [{name: value for name, value in line.items() if name not in timed} for line in history if "loss" in line]
