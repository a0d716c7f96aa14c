"""Real training runs of a tiny model that start in a fraction of a second, to be cut, damaged and compared."""

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from contextlib import closing
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
    """Processes of a run that has been started."""

    processes: list[int]
    output: Path
    _runs: "Runs"
    codes: list[int] = field(default_factory=list)

    def wait(self, seconds: float = 120) -> "Run":
        """Waits for the end of all ranks."""
        self.codes = [self._runs.ask(process=process, seconds=seconds) for process in self.processes]
        return self

    def tells(self, text: str, times: int = 1, seconds: float = 120) -> bool:
        """Waits until the ranks together have written a text so many times; returns whether they have in time."""
        end = time.monotonic() + seconds
        while self.text.count(text) < times and time.monotonic() < end:
            time.sleep(0.01)
        return self.text.count(text) >= times

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
        self._started = 0
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
        """Ends the process that forks."""
        self._zygote.communicate()

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
        self._started += 1
        told = self.folder / f"output-{self._started}.txt"
        told.touch()
        group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        processes: list[int] = []
        for rank in range(ranks):
            own = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            processes.append(
                self.ask(
                    module="llava_sp.train",
                    argv=argv,
                    environment={"FAULT": fault, **own},
                    folder=str(self.folder),
                    output=str(told),
                    before=["tests.reliability.faults"] if fault else [],
                )
            )
        return Run(processes, told, self)

    def run(self, output: str, *flags: str, **options: Any) -> Run:
        """Runs a training to its end; see `start`."""
        return self.start(output, *flags, **options).wait()

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
