"""Measures how a data file of the real size is opened and read: time, and memory of each process.

The file is synthetic, of LLaVA's 665k instruction samples' size and shape. Every figure comes from a fresh process. Its
memory is told as what the data add to it, which is what could go wrong, and whole, mostly PyTorch and transformers.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from tqdm import tqdm

from llava_sp.data.records import Records, open_records
from llava_sp.data.sampler import ModalityLengthSampler
from llava_sp.utils.commands import summary
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError

OPEN_SECONDS = 2.0
RESIDENT_MIB = 300
"""What this project promises at 665k records: time to open, and memory that the data take in a process."""

READS = 100_000
WORKERS = 2
_WORDS = "the a of on in left right red small cat table what is there how many people reading café 你好".split()


def main(arguments: list[str]) -> None:
    """Makes the file, measures, prints the figures beside the promises."""
    parser = argparse.ArgumentParser(prog="python -m llava_sp.bench dataset", description=summary(__doc__))
    parser.add_argument("--records", type=int, default=665_000, help="samples in the file (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to put the file, 1.6 KB a sample; removed at the end")
    options = parser.parse_args(arguments)
    if options.records < 1:
        raise UserError(f"--records must be at least 1, not {options.records}.")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "data.json"
        write_synthetic(path, options.records)
        out(f"{options.records:,} records, {path.stat().st_size / 2**20:,.0f} MiB of JSON")
        for measure in (build, read, order, load_with_workers):
            for name, value in fresh_process(measure, path).items():
                out(f"{name:<45} {value}")


def write_synthetic(path: Path, count: int) -> None:
    """Writes `count` samples in LLaVA's format: rounds of questions about an image, a twelfth of them text alone."""
    draw = random.Random(0)  # noqa: S311  # not for secrets

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(_WORDS, k=draw.randint(least, most)))

    with path.open("w", encoding="utf-8") as file:
        for number in tqdm(range(count), desc="Writing the file", unit=" records", leave=False):
            turns = []
            for _ in range(draw.randint(1, 8)):
                turns.append({"from": "human", "value": words(5, 25)})
                turns.append({"from": "gpt", "value": words(1, 60)})
            sample: dict[str, Any] = {"id": f"{number:012d}", "conversations": turns}
            if number % 12:
                sample["image"] = f"coco/train2017/{number:012d}.jpg"
                turns[0]["value"] = f"<image>\n{turns[0]['value']}"
            file.write(("," if number else "[") + json.dumps(sample, ensure_ascii=False) + "\n")
        file.write("]")


def fresh_process(measure: Callable[[Path], dict[str, str]], path: Path) -> dict[str, str]:
    """Runs a measurement in a process of its own, which has imported nothing but what it needs."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, path).result()


def build(path: Path) -> dict[str, str]:
    """Builds the index."""
    before = resident()
    start = time.perf_counter()
    open_records(path)
    seconds = time.perf_counter() - start
    index = next(path.parent.glob("*.index.npy")).stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "index built once in": f"{seconds:.1f} s ({index / 2**20:.1f} MiB)",
        "  memory for it, at its most": f"{peak - before:.0f} MiB",
    }


def read(path: Path) -> dict[str, str]:
    """Opens the file that has its index, and reads at random."""
    before = resident()
    start = time.perf_counter()
    records = open_records(path)
    opened = time.perf_counter() - start
    positions = random.Random(1).choices(range(len(records)), k=READS)  # noqa: S311
    start = time.perf_counter()
    for position in positions:
        records[position]
    seconds = time.perf_counter() - start
    return {
        "opened in": promise(opened, OPEN_SECONDS, f"{opened:.4f} s"),
        f"  memory after {READS:,} random reads": memory(before, resident()),
        "  random reads per second": f"{READS / seconds:,.0f}",
    }


def order(path: Path) -> dict[str, str]:
    """Makes the order of an epoch."""
    before = resident()
    records = open_records(path)
    start = time.perf_counter()
    sampler = ModalityLengthSampler(records.modality_lengths, batch_size=16, world_size=8, seed=0, group=True)
    iterator = iter(sampler)
    seconds = time.perf_counter() - start
    next(iterator)
    return {"order of an epoch, grouped, made in": f"{seconds:.1f} s", "  memory with it": memory(before, resident())}


class Reads:
    """Random reads, each answering with the reading process and sometimes its memory in MiB."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def __len__(self) -> int:
        return READS

    def __getitem__(self, number: int) -> tuple[int, float]:
        self.records[number * 7919 % len(self.records)]
        return os.getpid(), resident() if number % 1000 == 0 else 0.0


def load_with_workers(path: Path) -> dict[str, str]:
    """Reads through PyTorch's data loader with worker processes."""
    before = resident()
    reads: Any = Reads(open_records(path))
    start = time.perf_counter()
    largest: dict[int, float] = {}
    for batch in DataLoader(reads, batch_size=1000, num_workers=WORKERS, collate_fn=list):
        for process, size in batch:
            largest[process] = max(size, largest.get(process, 0.0))
    seconds = time.perf_counter() - start
    return {
        f"memory of each of {WORKERS} loader workers": memory(before, max(largest.values())),
        "  random reads per second": f"{READS / seconds:,.0f}",
    }


def promise(value: float, limit: float, text: str) -> str:
    """Adds to a figure whether it keeps the promise."""
    return f"{text} ({'within' if value < limit else 'MISSES'} the promised {limit:g})"


def memory(before: float, after: float) -> str:
    """Says what the data added to a process, and how much it holds in all, from MiB before and after."""
    return promise(after - before, RESIDENT_MIB, f"{after - before:.0f} MiB of {after:.0f}")


def resident() -> float:
    """Returns this process's resident memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
