"""Whether everything a run reads is there, told in one message before anything slow."""

import logging
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache

from llava_sp.data.check import check_records
from llava_sp.data.dataset import ConversationDataset
from llava_sp.model.loading import read_card
from llava_sp.train.arguments import TrainArguments
from llava_sp.train.benchmarks import choose_benchmarks
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import is_hub_name
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

CHECKED_SAMPLES = 1000
"""Samples that are looked at before every training."""

LLAVA_IMAGES = {
    "coco/train2017": "http://images.cocodataset.org/zips/train2017.zip",
    "gqa/images": "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip",
    "ocr_vqa/images": "https://github.com/haotian-liu/LLaVA (its README links the OCR-VQA images)",
    "textvqa/train_images": "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
    "vg/VG_100K": "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
    "vg/VG_100K_2": "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
}
"""Image folders of LLaVA's instruction data, below `image_folder`, and where they are published."""

SOURCES = {
    "blip_laion_cc_sbu_558k.json": "https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain",
    "llava_v1_5_mix665k.json": "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
    "LLaVA-Pretrain/images": "https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain (images.zip, unpacked)",
}
"""Where LLaVA's data is published, by the end of its path in LLaVA's layout."""


def check_inputs(given: dict[str, Any]) -> None:
    """Checks that models, data and the checkpoint to start from are there.

    Args:
        given: The arguments that were given, by name.

    Raises:
        UserError: Something is missing; the message lists all of it, with source and destination.
    """
    absent = [name for name in ("data_path",) if not given.get(name)]
    if not given.get("init_from"):
        absent += [name for name in ("model_name_or_path", "vision_tower") if not given.get(name)]
    if absent:
        raise UserError(f"Please give {' and '.join('--' + name for name in absent)}.")
    missing = [*_missing_parts(given), *_missing_data(given), *_missing_benchmarks(given)]
    if missing:
        raise UserError(
            "Not everything that this run reads is there:\n"
            + "\n".join(f"  - {line}" for line in missing)
            + "\nTo see the whole recipe at work without any of this, run: bash scripts/quickstart.sh"
        )


def _missing_parts(given: dict[str, Any]) -> list[str]:
    """What is missing of the LLM, the vision tower, or the checkpoint to start from."""
    if init_from := given.get("init_from"):
        if model_is_there(init_from):
            read_card(init_from)  # says what else it is, if it is no checkpoint of this project
            return []
        return [f"the checkpoint to start from, {init_from} (bash scripts/pretrain.sh makes stage 1's)"]
    missing = []
    for what, argument in (("LLM", "model_name_or_path"), ("vision tower", "vision_tower")):
        if not model_is_there(given[argument]):
            name = given[argument]
            get = f"get it with 'hf download {name}', or " if is_hub_name(name) else ""
            missing.append(f"the {what} {name}: {get}put its folder anywhere and give it by --{argument}")
    return missing


def model_is_there(name: str) -> bool:
    """Whether a model is a local folder, or a name on the hub that is cached or can be reached."""
    path = Path(name)
    if os.path.isdir(path):  # unlike Path's, it takes names that are too long
        return (path / "config.json").is_file()
    if not is_hub_name(name):
        return False
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return True
    try:
        HfApi().model_info(name, timeout=5)
    except Exception:  # whatever the network or the name does, the answer is the same
        return False
    return True


def _missing_data(given: dict[str, Any]) -> list[str]:
    """What is missing of the data files and image folders."""
    missing = []
    for argument in ("data_path", "eval_data_path"):
        path = given.get(argument)
        if path and not os.path.isfile(path):
            missing.append(f"the data {path}{_source(path)} (--{argument})")
    folder = given.get("image_folder")
    if not folder:
        return missing
    if not os.path.isdir(folder):
        missing.append(f"the image folder {folder}{_source(folder)} (--image_folder)")
    elif Path(given["data_path"]).name == "llava_v1_5_mix665k.json":
        missing += [
            f"the images {folder}/{part}: {source}"
            for part, source in LLAVA_IMAGES.items()
            if not (Path(folder) / part).is_dir()
        ]
    return missing


def _missing_benchmarks(given: dict[str, Any]) -> list[str]:
    """What is missing of the benchmarks that are scored while training."""
    if not given.get("eval_benchmarks"):
        return []
    data = Path(given.get("eval_data_root", TrainArguments.eval_data_root))
    return [
        f"for the benchmark {benchmark.name}, {data / benchmark.folder / file.name} ({file.what}): get it from "
        f"{file.source}, or give --eval_data_root"
        for benchmark in choose_benchmarks(given["eval_benchmarks"])
        for file in benchmark.missing(data / benchmark.folder)
    ]


def _source(path: str) -> str:
    for end, source in SOURCES.items():
        if path.rstrip("/").endswith(end):
            return f": get it from {source}"
    return ""


def check_data(dataset: ConversationDataset, extent: str, max_bad_share: float) -> None:
    """Looks for samples that cannot be read or teach nothing; shows a progress bar.

    Args:
        dataset: What the training will read.
        extent: `sample` for a thousand samples at random, `full` for all of them, `off` for none.
        max_bad_share: Share of the samples that may be unreadable.

    Raises:
        UserError: Too many samples cannot be used; the message counts each kind of problem and names the first ones.
    """
    if extent == "off":
        return
    report = check_records(dataset, None if extent == "full" else CHECKED_SAMPLES, max_bad_share=max_bad_share)
    if not report.ok:
        raise UserError(f"The data {dataset.records.path} cannot be trained on. {report}")
    logger.log(logging.WARNING if report.counts else logging.INFO, "%s", report)
