"""Flags that the commands which answer questions share, with LLaVA's names and meaning."""

import argparse
import os

import torch

from llava_sp.data.conversation import Template, get_template
from llava_sp.model.loading import load
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.model.quantization import quantization_config
from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which model answers, where, and in which conversation."""
    add = parser.add_argument
    add("--model-path", required=True, help="checkpoint: a folder, or a name on the Hugging Face Hub")
    add("--model-base", help="what a LoRA or projector checkpoint stands on, if not what it names itself")
    add("--conv-mode", help="conversation template (default: the one that the checkpoint was tuned with)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:N, or auto")
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="auto: the checkpoint's")
    add("--allow-other-base", action="store_true", help="take a base with other weights than it was trained with")
    bits = parser.add_mutually_exclusive_group()
    for size in ("4bit", "8bit"):
        told = f"hold the LLM in {size[0]} bits per weight; needs bitsandbytes"
        bits.add_argument(f"--load-{size}", dest="quantization", action="store_const", const=size, help=told)


def parse_flags(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parses flags that may be spelled with dashes or, as some of LLaVA's are, with underscores."""
    return parser.parse_args([_dashed(argument) for argument in argv])


def check_model_flags(options: argparse.Namespace) -> None:
    """Checks what can be checked before the model is loaded.

    Raises:
        UserError: There is no such conversation, no such device, or no bitsandbytes.
    """
    if options.quantization is not None:
        quantization_config(options.quantization)
    if options.conv_mode is not None:
        get_template(options.conv_mode)
    try:
        kind = "cpu" if options.device == "auto" else torch.device(options.device).type
    except RuntimeError:
        raise UserError(f"--device {options.device}: no such device; use cpu, cuda, cuda:N or auto.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {options.device}: PyTorch sees no GPU here; use --device cpu.")


def load_model(options: argparse.Namespace) -> tuple[LlavaSPForCausalLM, LlavaSPProcessor, Template]:
    """Loads the model, its processor and the conversation to ask in; warns if it is not the model's own.

    A rank among several takes a GPU of its own.
    """
    device = options.device
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    model, processor = load(
        options.model_path,
        options.model_base,
        options.dtype,
        device,
        options.quantization,
        allow_other_base=options.allow_other_base,
    )
    tuned_with = get_template(processor.conversation_template)
    template = tuned_with if options.conv_mode is None else get_template(options.conv_mode)
    if template.name != tuned_with.name:
        logger.warning(
            "--conv-mode %s: the model was tuned with the conversation %r and may answer badly in %r.",
            options.conv_mode,
            tuned_with.name,
            template.name,
        )
    return model, processor, template


def _dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value
