"""What a run tells about itself: its arguments, what it trains, what it needs, its first sample, its result."""

import os
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from llava_sp.constants import IGNORE_INDEX, IMAGE_TOKEN
from llava_sp.model.card import CARD_NAME
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.model.quantization import count, quantised_parameters
from llava_sp.model.trainable import part_modules, plain_model, trainable_parameter_groups
from llava_sp.train import assembly
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


def memory_advice(run: RunArguments, error: BaseException, *, available: float | None = None) -> str | None:
    """Returns what can be done where memory was too little for a run, with figures from `memory_estimate`.

    Args:
        run: The run's arguments.
        error: What was met.
        available: Bytes that one rank can have; found out if not given.

    Returns:
        A few sentences for a `UserError`, or None if `error` is about something else.
    """
    place = short_of(error)
    if place is None:
        return None
    if place == "machine" and not run.training.use_cpu:
        workers = run.training.dataloader_num_workers
        fewer = f"--dataloader_num_workers below {workers}, or " if workers else ""
        return (
            "The machine is out of memory, not the GPU: there each rank holds the whole model while it loads, its data "
            "workers hold images, and DeepSpeed what its configuration offloads. End what else runs on the machine, or "
            f"give {fewer}a lower --nproc_per_node."
        )
    available = memory_of_a_rank(run.training.device) if available is None else available
    with assembly.whole_weights(run):
        model, _ = assembly.plan_model(run)
    need = rank_memory(model, run)
    # Where the estimate is below what there is, it is too low; then it is for other arguments too.
    enough = 0.9 * min(available, need)
    knobs = [[(flags, rank_memory(model, lighter)) for flags, lighter in knob] for knob in lighter_runs(run)]
    found = (next((option for option in knob if option[1] <= enough), None) for knob in knobs)
    *single, combined = [f"{option[0]} ({option[1] / GIB:.3g} GiB)" if option else "" for option in found]
    fitting = " or ".join(filter(None, single)) or combined
    advice = f"Give {fitting}" if fitting else "It takes more memory, more ranks, or a lower --model_max_length"
    return (
        f"The {place} is out of memory: a rank needs about {need / GIB:.3g} GiB (estimated, as by --dry_run) and "
        f"can have {available / GIB:.3g}. {advice}. With other arguments a run that has checkpoints needs another "
        "--output_dir."
    )


def short_of(error: BaseException) -> Literal["GPU", "machine"] | None:
    """Returns whose memory an error says is used up, if it says so."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or ("CUDA" in text and "out of memory" in text):
        return "GPU"
    # The last is said of a data worker that the system has ended, which it mostly does for want of memory.
    told = ("DefaultCPUAllocator: can't allocate memory", "Cannot allocate memory", "is killed by signal: Killed")
    return "machine" if isinstance(error, MemoryError) or any(words in text for words in told) else None


def memory_of_a_rank(device: torch.device) -> float:
    """Returns the bytes that this process has and can get: on its GPU, or as its share of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank_memory(model: nn.Module, run: RunArguments) -> float:
    """Returns the sum of `memory_estimate` in bytes, without what is offloaded."""
    return sum(size for name, size in memory_estimate(model, run).items() if name != "CPU memory")


def lighter_runs(run: RunArguments) -> list[list[tuple[str, RunArguments]]]:
    """Returns the ways to need less memory, and last the most of all of them: flags, and the run that they make."""
    plan, training, bits = run.batch_plan, run.training, run.model.bits
    micro_batches = plan.per_device * plan.accumulation
    knobs: list[dict[str, dict[str, Any]]] = [
        {
            f"--per_device_train_batch_size {size} --gradient_accumulation_steps {micro_batches // size}": {
                "batch_plan": replace(plan, per_device=size, accumulation=micro_batches // size)
            }
            for size in range(plan.per_device - 1, 0, -1)
            if micro_batches % size == 0
        },
    ]
    if not training.gradient_checkpointing:
        knobs.append({"--gradient_checkpointing true": {"gradient_checkpointing": True}})
    zero3 = Path(training.deepspeed or "configs/zero2.json").with_name("zero3.json")
    whole = zero_stage(training.deepspeed) < 3
    if whole and bits > 4 and run.model.stage != "finetune":
        knobs.append({"--bits 4": {"bits": 4}})
    elif whole and bits == 16 and plan.ranks > 1 and zero3.is_file() and not training.eval_benchmarks:
        knobs.append({f"--deepspeed {zero3}": {"deepspeed": str(zero3)}})
    most = [list(knob.items())[-1] for knob in knobs if knob]
    last = {" ".join(flags for flags, _ in most): {name: value for _, new in most for name, value in new.items()}}
    if bits > 4 and run.model.stage != "finetune":
        alone = replace(plan, per_device=1, accumulation=micro_batches)
        least = {"bits": 4, "optim": "paged_adamw_8bit", "deepspeed": None, "batch_plan": alone}
        last["configs/train/small_gpu.yaml after the script"] = least
    knobs.append(last)
    return [[(flags, changed(run, changes)) for flags, changes in knob.items()] for knob in knobs]


def changed(run: RunArguments, changes: dict[str, Any]) -> RunArguments:
    """Returns a copy of a run in which some fields, of whichever of its parts, have other values."""
    run = replace(run, model=copy(run.model), training=copy(run.training))
    for name, value in changes.items():
        owner = next(part for part in (run, run.model, run.training) if hasattr(part, name))
        setattr(owner, name, value)
    return run


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
