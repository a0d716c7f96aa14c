"""What a run tells about itself: its arguments, what it trains, what it needs, its first sample, its result."""

import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from llava_sp.constants import IGNORE_INDEX, IMAGE_TOKEN
from llava_sp.model.card import CARD_NAME
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.model.quantization import count, quantised_parameters
from llava_sp.model.trainable import part_modules, plain_model, trainable_parameter_groups
from llava_sp.train.command_line import RunArguments, zero_settings, zero_stage
from llava_sp.train.provenance import chosen_arguments
from llava_sp.utils.console import out

GIB = 2**30


def trainable_report(model: nn.Module) -> str:
    """Returns a table of the parts: parameters, how many of them are trained, and in which groups."""
    groups = trainable_parameter_groups(model)
    trained = {id(p): owner for owner, named in groups.items() for _, p in named}
    lines = [f"{'part':<14}{'parameters':>16}{'trained':>16}  as"]
    totals = [0, 0]
    for part, modules in part_modules(model).items():
        parameters = {id(p): p for module in modules for p in module.parameters()}
        # PEFT keeps the projector's original beside its trained copy; the original takes no part.
        if part == "projector":
            parameters = {key: p for key, p in parameters.items() if key in trained} or parameters
        sizes = {key: count(p) for key, p in parameters.items()}
        owners = sorted({trained[key] for key in parameters if key in trained})
        numbers = (sum(sizes.values()), sum(size for key, size in sizes.items() if key in trained))
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        lines.append(f"{part:<14}{numbers[0]:>16,}{numbers[1]:>16,}  {', '.join(owners) or 'frozen'}")
    lines.append(f"{'all':<14}{totals[0]:>16,}{totals[1]:>16,}  {totals[1] / totals[0]:.2%} trained")
    return "\n".join(lines)


def module_report(model: nn.Module) -> str:
    """Returns the trained parameters of each module of the projector and the count of LoRA matrices."""
    projector = plain_model(model).model.multi_modal_projector
    trained = [(name, p) for name, p in projector.named_parameters() if p.requires_grad]
    lines = [
        f"  {name.replace('modules_to_save.default.', ''):<56}{p.numel():>14,}  {list(p.shape)}" for name, p in trained
    ]
    lora = trainable_parameter_groups(model).get("lora", [])
    if lora:
        lines.append(f"  {len(lora)} LoRA matrices in the LLM{sum(p.numel() for _, p in lora):>41,}")
    return "\n".join(lines)


def memory_estimate(model: nn.Module, run: RunArguments) -> dict[str, float]:
    """Estimates the memory of one rank in bytes.

    Weights, gradients and optimizer states follow from the counts, the precision, `--bits`, the optimizer and the ZeRO
    stage: stage 1 shares optimizer states among the ranks, stage 2 gradients too, stage 3 weights too. What ZeRO
    offloads is `CPU memory`, if anything. Activations are a rough estimate for the longest sequence: each layer's input
    (18 times that without gradient checkpointing, which keeps what the layer makes), one layer at work, and logits with
    their gradient in fp32.
    """
    zero, ranks = zero_settings(run.training.deepspeed), run.batch_plan.ranks
    stage = zero.get("stage", 0)
    width = 2 if run.training.bf16 or run.training.fp16 else 4
    everything = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for named in trainable_parameter_groups(model).values() for _, p in named)
    own_width = width if stage else 4  # without DeepSpeed, what learns is kept in fp32
    packed = quantised_parameters(model) if run.model.bits < 16 else 0
    weights = (everything - trained - packed) * width + packed * run.model.bits / 8 + trained * own_width
    moments = 2 if "8bit" in run.training.optim else 8
    # DeepSpeed keeps masters in fp32, also of weights in fp32; without it the weights are their own masters.
    states = trained * (moments + 4 if stage else moments)
    text = plain_model(model).config.text_config
    positions = run.batch_plan.per_device * run.training.model_max_length
    layer = positions * text.hidden_size * width
    kept = text.num_hidden_layers * layer * (1 if run.training.gradient_checkpointing else 18)
    activations = kept + 18 * layer + positions * text.vocab_size * (width + 8)
    sizes = {
        "weights": weights / (ranks if stage >= 3 else 1),
        "gradients": trained * 4 / (ranks if stage >= 2 else 1),  # accumulated in fp32
        "optimizer states": states / (ranks if stage >= 1 else 1),
        "activations": activations,
    }
    offloaded = {"offload_param": ["weights"], "offload_optimizer": ["gradients", "optimizer states"]}
    moved = [name for key, names in offloaded.items() if zero.get(key, {}).get("device") == "cpu" for name in names]
    if moved:
        sizes["CPU memory"] = sum(sizes.pop(name) for name in moved)
    return sizes


def format_memory(estimate: dict[str, float], run: RunArguments) -> str:
    """Returns the estimate as a table."""
    stage = zero_stage(run.training.deepspeed)
    on_gpu = {name: size for name, size in estimate.items() if name != "CPU memory"}
    half = "bf16" if run.training.bf16 else "fp16" if run.training.fp16 else "fp32 (--bf16 True shows that of a GPU)"
    zero = f"ZeRO-{stage}" if stage else "no ZeRO"
    head = f"memory per rank (estimate; {run.batch_plan.ranks} rank(s), {zero}, {half})"
    lines = [head, *(f"  {name:<18}{size / GIB:>10.2f} GiB" for name, size in on_gpu.items())]
    lines.append(f"  {'sum':<18}{sum(on_gpu.values()) / GIB:>10.2f} GiB")
    if "CPU memory" in estimate:
        lines.append(f"  {'CPU memory':<18}{estimate['CPU memory'] / GIB:>10.2f} GiB")
    return "\n".join(lines)


def memory_advice(run: RunArguments) -> str:
    """Returns what can be done where a GPU has too little memory for a run."""
    knobs = [
        ("gradient_checkpointing true", not run.training.gradient_checkpointing),
        (f"per_device_train_batch_size below {run.batch_plan.per_device}", run.batch_plan.per_device > 1),
        (f"model_max_length below {run.training.model_max_length}", True),
        ("bits 4", run.model.stage != "finetune" and run.model.bits > 4),
        ("deepspeed configs/zero3.json", run.model.bits == 16 and zero_stage(run.training.deepspeed) < 3),
    ]
    return (
        f"The GPU is out of memory. Any of these needs less: {', '.join(f'--{knob}' for knob, helps in knobs if helps)}"
        "; --dry_run estimates how much. With other arguments a run that has checkpoints needs another --output_dir."
    )


def render_sample(sample: dict[str, Any], processor: LlavaSPProcessor, *, colour: bool) -> str:
    """Returns a sample's text with its loss mask: supervised tokens green (or in brackets), the rest plain.

    Args:
        sample: `input_ids` and `labels` [L] of one sample.
        processor: The processor, to decode the ids.
        colour: Whether to colour by ANSI codes.
    """
    ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
    marks = {"image": ("\033[36m", "\033[0m"), "loss": ("\033[1;32m", "\033[0m"), "plain": ("", "")}
    if not colour:
        marks = {"image": ("", ""), "loss": ("[", "]"), "plain": ("", "")}
    pieces: list[str] = []
    start = 0
    kinds = [_kind(token, label, processor.image_token_id) for token, label in zip(ids, labels, strict=True)]
    for end in range(1, len(ids) + 1):
        if end < len(ids) and kinds[end] == kinds[start]:
            continue
        run = ids[start:end]
        text = f"{IMAGE_TOKEN}x{len(run)}" if kinds[start] == "image" else processor.tokenizer.decode(run)
        before, after = marks[kinds[start]]
        pieces.append(f"{before}{text}{after}")
        start = end
    return "".join(pieces)


def _kind(token: int, label: int, image_token_id: int) -> str:
    if token == image_token_id:
        return "image"
    return "plain" if label == IGNORE_INDEX else "loss"


def wants_colour() -> bool:
    """Whether standard output shows colours: on a terminal, or by FORCE_COLOR; never with NO_COLOR."""
    if os.environ.get("NO_COLOR"):
        return False
    return sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))


def print_dry_run(model: nn.Module, processor: LlavaSPProcessor, dataset: Any, run: RunArguments) -> None:
    """Prints what a run would do, on one or two screens."""
    chosen = "\n".join(f"  {name}: {value}" for name, value in chosen_arguments(run))
    steps = -(-len(dataset) // run.batch_plan.global_batch)
    sample, colour = dataset[0], wants_colour()
    marked = "green" if colour else "[brackets]"
    out(f"arguments that are not at their default ({run.model.stage})\n{chosen}\n")
    out(f"batch\n  {run.batch_plan}\n  {len(dataset):,} samples, {steps:,} steps an epoch\n")
    out(f"parameters\n{trainable_report(model)}\n{module_report(model)}\n")
    out(f"{format_memory(memory_estimate(model, run), run)}\n")
    out(f"first sample ({sample['sample_id']}): {len(sample['input_ids'])} tokens, the loss is on what is in {marked}")
    out(render_sample(sample, processor, colour=colour))


def print_result(folder: Path, stage: str, metrics: dict[str, Any]) -> None:
    """Prints where the result lies and what comes next, on one screen."""
    step = "bash scripts/finetune_lora.sh --init_from"
    rest = ""
    if stage != "pretrain":
        step = "python -m llava_sp.eval.model_vqa --model-path"
        rest = " --image-folder IMAGES --question-file QUESTIONS.jsonl --answers-file ANSWERS.jsonl"
    seconds, loss = metrics["train_runtime"], metrics["train_loss"]
    lines = [
        "-" * 72,
        f"{stage} is done: {metrics['steps']} steps; this time {seconds:.0f} s, mean loss {loss:.4f}",
        f"  model and processor  {folder}",
        f"  its description      {folder / CARD_NAME}",
        f"  log of loss, rates   {folder / 'trainer_state.json'} (log_history)",
        f"  summary              {folder / 'metrics.json'}",
        f"next: {step} {folder}{rest}",
        "-" * 72,
    ]
    out("\n" + "\n".join(lines))
