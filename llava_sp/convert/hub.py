"""A checkpoint as a folder for the Hugging Face Hub, with a model card that says only what is known."""

import re
from pathlib import Path
from typing import Any

import torch
import yaml

from llava_sp.convert.ours import Checkpoint, read_checkpoint, saved_dtype, write_checkpoint
from llava_sp.convert.tensors import find_file
from llava_sp.convert.verify import Agreement, verify_copy
from llava_sp.convert.writing import output_folder
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json, write_json, write_text

STUB = "llava_sp_stub"
CLASSES = {
    "AutoConfig": "LlavaSPConfig",
    "AutoModel": "LlavaSPModel",
    "AutoModelForCausalLM": "LlavaSPForCausalLM",
    "AutoModelForImageTextToText": "LlavaSPForCausalLM",
}
PROCESSORS = {"AutoProcessor": "LlavaSPProcessor", "AutoImageProcessor": "LlavaSPImageProcessor"}
METRICS_NAME = "metrics.json"
HUB_NAME = r"[\w.-]+/[\w.-]+"

_LOCAL = re.compile(r"(?<![\w:/.~-])(~[\w-]*|\.\.)?(/[^\s/,;:'\"]+)+")
"""A path of this machine, within a text: from the root, from somebody's home, or out of the folder of the run."""

_PASSWORD = re.compile(r"://[^\s/@]+@")


def to_hub(
    path: str,
    output: str,
    *,
    base: str | None = None,
    allow_other_base: bool = False,
    licence: str | None = None,
    scores: str | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = False,
) -> Agreement | None:
    """Writes a checkpoint of any kind as a folder that can be uploaded, and loaded by the Auto classes from there.

    Its `auto_map` points at a stub of one line, which imports this package where it is installed: the folder carries
    no code of its own. Paths of this machine are left out.

    Args:
        path: Folder or Hub name of the checkpoint.
        output: Folder to write; it must not exist, or be empty.
        base: What it stands on, in place of what its card names.
        allow_other_base: Takes a base although its weights are not those that it was trained with.
        licence: Identifier of the weights' licence, for the model card.
        scores: JSON file with measured scores, for the model card.
        dtype: Type to write; the LLM's where it is None.
        verify: Whether to compare the logits of the checkpoint and the result.

    Raises:
        UserError: The checkpoint, its base or the scores cannot be read, or the result's logits differ.
    """
    with output_folder(output) as folder:
        checkpoint = read_checkpoint(path, base, allow_other_base=allow_other_base)
        measured = _numbers(read_json(scores), scores) if scores else {}
        metrics = find_file(path, METRICS_NAME)
        training = _numbers(read_json(metrics), str(metrics)) if metrics else {}
        for part in (checkpoint.config.text_config, checkpoint.config.vision_config):
            name = part.name_or_path or ""
            part.name_or_path = name if re.fullmatch(HUB_NAME, name) and not Path(name).exists() else Path(name).name
        checkpoint.card.details = _public(checkpoint.card.details)
        checkpoint.config.auto_map = {auto: f"{STUB}.{name}" for auto, name in {**CLASSES, **PROCESSORS}.items()}
        dtype = dtype or saved_dtype(checkpoint.tensors)
        write_checkpoint(folder, checkpoint, dtype)
        _map_processor(folder)
        imported = ", ".join(sorted({*CLASSES.values(), *PROCESSORS.values()}))
        write_text(folder / f"{STUB}.py", f"from llava_sp import {imported}  # noqa: F401\n")
        write_text(folder / "README.md", model_card(checkpoint, dtype, licence, measured, training))
        return verify_copy(path, base, folder, dtype, allow_other_base=allow_other_base) if verify else None


def model_card(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    licence: str | None,
    scores: dict[str, float],
    training: dict[str, float],
) -> str:
    """Returns the README of a checkpoint: what its card and its run tell, and no more."""
    config, card = checkpoint.config, checkpoint.card
    bases = [part.name_or_path for part in (config.text_config, config.vision_config)]
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["llava-sp"]}
    if licence:
        head["license"] = licence
    if names := [base for base in bases if re.fullmatch(HUB_NAME, base)]:
        head["base_model"] = names
    arguments = card.details.get("arguments", {})
    facts = {
        "variant": _variant(card.spatial),
        "spatial tokens": config.num_spatial_tokens,
        "language model": bases[0] or "not recorded",
        "vision tower": bases[1] or "not recorded",
        "weights": str(dtype).removeprefix("torch."),
        "stage": card.stage,
        "conversation template": card.conversation_template,
        "imported from": card.details.get("imported_from"),
        "newly initialised, untrained": ", ".join(card.details.get("initialised", [])) or None,
        "training data": arguments.get("data_path", "not recorded"),
        "code": card.details.get("git"),
    }
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        "# LLaVA-SP",
        "LLaVA with visual spatial tokens ([arXiv 2507.00505](https://arxiv.org/abs/2507.00505)).",
        _table({name: value for name, value in facts.items() if value is not None}),
        "## Use",
        "Install the `llava_sp` package, then:",
        USE,
        "Without `import llava_sp`, transformers asks for `trust_remote_code=True`; all the code in this repository is "
        "one line that imports that package.",
        "## Hyper-parameters",
        _table(arguments) if arguments else "Not recorded.",
        "## Scores",
        _table(scores) if scores else "None were given.",
        *(["## Course of the training", _table(training)] if training else []),
        "## Licence",
        f"{licence}." if licence else "Not stated. The weights keep the licences of what they were made from.",
    ]
    return "\n\n".join(sections) + "\n"


USE = """```python
import llava_sp
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this repository")
processor = AutoProcessor.from_pretrained("this repository")
```"""


def _variant(spatial: dict[str, Any]) -> str:
    """Describes the spatial part in words."""
    maps = spatial["sfe_maps"]
    if maps == "none":
        return "none (LLaVA-1.5)"
    detail = f"DFI kernels {spatial['dfi_kernels']}" if spatial["dfi_kernels"] else "no DFI"
    return f"{maps} ({spatial['sfe_operator']}), sides {spatial['sfe_sides']}, {detail}"


def _map_processor(folder: Path) -> None:
    file = folder / "processor_config.json"
    settings = read_json(file)
    mapped = {auto: f"{STUB}.{name}" for auto, name in PROCESSORS.items()}
    settings["auto_map"] = mapped
    settings["image_processor"]["auto_map"] = {"AutoImageProcessor": mapped["AutoImageProcessor"]}
    write_json(file, settings)


def _public(value: Any) -> Any:
    """Leaves of local paths the last name, and of addresses no password, in whatever lies inside."""
    if isinstance(value, dict):
        return {name: _public(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~", "..")):  # names of files may hold spaces
        return Path(value).name
    return _LOCAL.sub(lambda path: Path(path[0]).name, _PASSWORD.sub("://", value))


def _numbers(value: Any, file: str) -> dict[str, float]:
    """Flattens a JSON object into its numbers, by their path in it."""
    if not isinstance(value, dict):
        raise UserError(f"{file} is no JSON object of names and numbers.")
    found: dict[str, float] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            found.update({f"{name} / {inner}": number for inner, number in _numbers(item, file).items()})
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            found[name] = item
    return found


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
