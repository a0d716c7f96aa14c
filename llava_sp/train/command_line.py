"""From YAML files and a command line to checked arguments. Both use the same names; what comes later wins."""

import argparse
import difflib
import importlib.util
import math
import os
import warnings
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser
from transformers.utils import cached_file

from llava_sp.data.conversation import get_template
from llava_sp.model.card import CARD_NAME, Card
from llava_sp.model.quantization import quantization_config
from llava_sp.train.arguments import LORA_FIELDS, DataArguments, ModelArguments, TrainArguments
from llava_sp.train.batch_plan import BatchPlan, plan_batch
from llava_sp.train.legacy import apply_legacy_flags, follow_adapter, read_renamed
from llava_sp.train.yaml_files import as_flags, read_yaml
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import is_hub_name, read_json_object
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

USAGE = "python -m llava_sp.train [CONFIG.yaml ...] [--name value ...]"

DESCRIPTION = (
    "YAML files come first, later ones win, and flags win over files. Arguments of transformers' Trainer stand between "
    "those of this project."
)

REPORTERS = ("none", "wandb", "tensorboard")

_BEST = "every checkpoint can be used by its path, and --save_total_limit keeps the newest"
_ORDER = "samples are shuffled, or ordered by --group_by_modality_length"
UNSUPPORTED: list[tuple[str, tuple[str, ...] | None, str]] = [
    ("load_best_model_at_end", None, _BEST),
    ("metric_for_best_model", None, _BEST),
    ("save_strategy", ("best",), _BEST),
    (
        "lr_scheduler_type",
        ("reduce_lr_on_plateau", "greedy"),
        "it needs a metric_for_best_model, which has no place here",
    ),
    ("save_only_model", None, "a run could not continue from such a checkpoint"),
    ("save_on_each_node", None, "the nodes must share the output folder"),
    ("push_to_hub", None, "publish the result by 'python -m llava_sp.convert to-hub'"),
    ("ignore_data_skip", None, "a run would not continue with the samples that it has not seen"),
    ("auto_find_batch_size", None, "the batch is planned before the run; see --global_batch_size"),
    ("train_sampling_strategy", ("sequential", "group_by_length", "batch_rebalance"), _ORDER),
    ("length_column_name", None, _ORDER),
]
"""Flags of Trainer that do not go with how runs continue here: name, values (all if None), and why."""

RANGES = {
    "max_bad_share": (0, math.inf),
    "stall_timeout": (0, math.inf),
    **dict.fromkeys(("lora_r", "lora_alpha", "model_max_length", "per_device_eval_batch_size"), (1, math.inf)),
    **dict.fromkeys(("learning_rate", "mm_projector_lr", "weight_decay", "max_grad_norm"), (0, math.inf)),
    **dict.fromkeys(("num_train_epochs", "adam_epsilon", "dataloader_num_workers"), (0, math.inf)),
    **dict.fromkeys(("lora_dropout", "adam_beta1", "adam_beta2"), (0, 1)),
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32)),
}
"""Numbers that are allowed: the lowest, and a limit that is too much already."""


@dataclass
class RunArguments:
    """All arguments of a run, checked against each other."""

    model: ModelArguments
    data: DataArguments
    training: TrainArguments
    batch_plan: BatchPlan


class _Parser(HfArgumentParser):
    """The parser of `TrainingArguments`, except that errors are ours and lists may be empty."""

    def __init__(self) -> None:
        kinds = (ModelArguments, DataArguments, TrainArguments)
        about = {"prog": "python -m llava_sp.train", "usage": USAGE, "description": DESCRIPTION}
        super().__init__(kinds, **about, allow_abbrev=False)
        for action in self._actions:
            if action.default not in (None, "", [], argparse.SUPPRESS) and "default" not in (action.help or "").lower():
                action.help = f"{action.help or ''} (default: {str(action.default).replace('%', '%%')})".lstrip()
            action.default = argparse.SUPPRESS  # so that we see what was given; the dataclasses know the defaults
            if action.nargs == "+":
                action.nargs = "*"
            if isinstance(action, argparse._StoreFalseAction):  # added to a flag that is on by default, with its help
                action.help = f"The same as --{action.dest} False."

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}.")

    def read(self, argv: list[str], source: str) -> dict[str, Any]:
        """Returns what `argv` gives, by name.

        Raises:
            UserError: An argument is unknown (the nearest name is suggested) or its value has the wrong type.
        """
        argv, renamed = read_renamed(argv)
        if empty := next((word for word in argv if word.endswith("=--")), None):  # argparse makes a list of it
            raise UserError(f"{empty.removesuffix('=--')} has no value, but '--' ({source}).")
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            if unknown[0].endswith((".yaml", ".yml")):
                raise UserError(f"{unknown[0]} comes after a flag; YAML files come first.")
            name = unknown[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else "; --help lists all."
            raise UserError(f"{source}: unknown argument {name}{hint}")
        values = {**renamed, **vars(namespace)}
        follow_adapter(values)
        return values


def complete(given: dict[str, Any], *, ranks: int) -> BatchPlan:
    """Fills in what follows from the hardware and the batch plan, and checks what can be checked without a device.

    Args:
        given: The arguments that were given, by name; changed in place.
        ranks: Number of processes that train together.

    Raises:
        UserError: A value is not supported, or two values contradict each other.
    """
    apply_legacy_flags(given)
    _follow_start(given)
    _choose_conversation(given)
    get_template(given["version"])  # says so if there is none
    _choose_precision(given)
    _check_ranges(given)
    given.setdefault("per_device_train_batch_size", TrainArguments.per_device_train_batch_size)
    given.setdefault("per_device_eval_batch_size", given["per_device_train_batch_size"])
    plan = plan_batch(
        per_device=given["per_device_train_batch_size"],
        ranks=ranks,
        global_batch=given.get("global_batch_size"),
        accumulation=given.get("gradient_accumulation_steps"),
    )
    given["gradient_accumulation_steps"] = plan.accumulation
    given["global_batch_size"] = plan.global_batch
    if not given.get("output_dir"):
        raise UserError("--output_dir is missing: the folder for checkpoints and the result.")
    if given.get("deepspeed") in ("", "none"):
        del given["deepspeed"]
    if "deepspeed" in given and not os.path.isfile(given["deepspeed"]):
        raise UserError(
            f"--deepspeed: the file {given['deepspeed']} does not exist; see configs/zero2.json, or give none."
        )
    if given.get("fsdp"):
        raise UserError("--fsdp is not supported: DeepSpeed splits the model among ranks; see --deepspeed.")
    for flag, values, reason in UNSUPPORTED:
        if given.get(flag) and (values is None or str(given[flag]).lower() in values):
            raise UserError(f"--{flag} {given[flag]} is not supported: {reason}.")
    _check_bits(given)
    _check_reporters(given)
    _complete_evaluation(given)
    _check_benchmarks(given)
    if given.get("gradient_checkpointing"):
        # The reentrant form finds no input that requires a gradient where embeddings and tower are frozen.
        given.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    given.setdefault("ddp_find_unused_parameters", False)
    return plan


def build_arguments(given: dict[str, Any], plan: BatchPlan) -> RunArguments:
    """Makes the dataclasses; Hugging Face's one sets up device and process group.

    Raises:
        UserError: `TrainingArguments` refuses the values.
    """
    with warnings.catch_warnings():
        # `gradient_checkpointing` is the one name that every supported version of transformers knows.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        try:
            training = _fill(TrainArguments, given)
        except Exception as error:  # no code of ours, and each of its checks raises something else
            what = error if isinstance(error, ValueError | ImportError | OSError) else repr(error)
            raise UserError(f"The training arguments do not fit together: {what}") from error
    return RunArguments(_fill(ModelArguments, given), _fill(DataArguments, given), training, plan)


def collect(argv: list[str]) -> dict[str, Any]:
    """Merges the YAML files at the head of `argv` and the flags after them; returns what was given, by name."""
    parser = _Parser()
    if argv and argv[0].startswith("--local_rank="):
        argv = argv[1:]  # DeepSpeed's launcher puts it first; the environment says the same
    files = 0
    while files < len(argv) and argv[files].endswith((".yaml", ".yml")):
        files += 1
    merged: dict[str, Any] = {}
    for path in argv[:files]:
        values = read_yaml(path)
        _overlay(merged, parser.read(as_flags(values), path))
        for name in (name for name, value in values.items() if value is None):
            merged.pop(name, None)
    _overlay(merged, parser.read(argv[files:], "command line"))
    return merged


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Puts `above` over `below`; of the batch's two names, the one given last alone counts."""
    if "gradient_accumulation_steps" in above and "global_batch_size" not in above:
        below.pop("global_batch_size", None)
    if "global_batch_size" in above and "gradient_accumulation_steps" not in above:
        below.pop("gradient_accumulation_steps", None)
    below.update(above)


def _fill(cls: type, given: dict[str, Any]) -> Any:
    names = {field.name for field in fields(cls) if field.init}
    return cls(**{name: value for name, value in given.items() if name in names})


def _follow_start(given: dict[str, Any]) -> None:
    """Takes what was not given from the checkpoint to start from: the tower's layer, and the shape of its LoRA."""
    if not given.get("init_from"):
        return
    followed = {"config.json": {"mm_vision_select_layer": "vision_feature_layer"}}
    if given.get("lora_enable"):
        followed["adapter_config.json"] = LORA_FIELDS
    for file, names in followed.items():
        path = _file_of(given["init_from"], file)
        found = read_json_object(path) if path else {}
        given.update({flag: found[name] for flag, name in names.items() if name in found and flag not in given})


def _file_of(checkpoint: str, name: str) -> str | None:
    """Returns a file of a folder or Hub repository, None if it cannot be had; what is missing is told later."""
    if os.path.isdir(checkpoint):
        path = os.path.join(checkpoint, name)
        return path if os.path.isfile(path) else None
    if not is_hub_name(checkpoint):
        return None
    lenient = ("gated_repo", "missing_entries", "connection_errors")
    try:
        return cached_file(checkpoint, name, **{f"_raise_exceptions_for_{what}": False for what in lenient})
    except (OSError, ValueError):  # it is no name of a repository
        return None


def _choose_conversation(given: dict[str, Any]) -> None:
    """Stage 2 speaks as the LLM does: as given, or as the checkpoint to start from says."""
    if given.get("tune_mm_mlp_adapter"):
        given.setdefault("version", "plain")
        return
    card = _file_of(given["init_from"], CARD_NAME) if given.get("init_from") else None
    if card and "conversation" not in given:
        start = Card.read(card)
        spoken = start.conversation_template
        if spoken == "plain":  # after stage 1, which knows nevertheless what was to come
            told = start.details.get("arguments")
            spoken = (told if isinstance(told, dict) else {}).get("conversation", ModelArguments.conversation)
        given["conversation"] = str(spoken)
    given.setdefault("version", given.get("conversation", ModelArguments.conversation))


def _choose_precision(given: dict[str, Any]) -> None:
    """bf16 and TF32 where the GPU has them; fp32 on CPU unless bf16 is asked for."""
    if given.get("use_cpu") or not torch.cuda.is_available():
        given["use_cpu"] = True
        if given.pop("tf32", None):
            logger.info("tf32 is a mode of GPUs; it is left off on the CPU.")
        return
    ampere = torch.cuda.get_device_capability()[0] >= 8
    if not given.get("fp16"):
        given.setdefault("bf16", ampere)
    given.setdefault("tf32", ampere)


def zero_stage(deepspeed: str | None) -> int:
    """Returns the ZeRO stage of a DeepSpeed configuration file, 0 without one."""
    return zero_settings(deepspeed).get("stage", 0)


def zero_settings(deepspeed: str | None) -> dict[str, Any]:
    """Returns what a DeepSpeed configuration file says of ZeRO; nothing without one."""
    settings = read_json_object(deepspeed).get("zero_optimization", {}) if deepspeed else {}
    if not isinstance(settings, dict):
        raise UserError(f"{deepspeed}: 'zero_optimization' must be an object.")
    return settings


def _check_ranges(given: dict[str, Any]) -> None:
    """Numbers that PyTorch or PEFT would refuse only after the weights are loaded."""
    for name, value in given.items():
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"--{name}: a number of at most 18 digits is needed.")
    for name, (lowest, limit) in RANGES.items():
        value = given.get(name)
        if value is not None and not (isinstance(value, int | float) and lowest <= value < limit):
            most = f" to below {limit}" if limit < math.inf else ""
            raise UserError(f"--{name} {value}: a number from {lowest}{most} is needed.")


def _check_bits(given: dict[str, Any]) -> None:
    """Quantised weights stay as they are, and whole: neither trained themselves nor split among ranks."""
    bits = given.get("bits", 16)
    if bits == 16:
        return
    if bits not in (4, 8):
        raise UserError(f"--bits {bits}: a weight of the LLM can have 16 bits, 8 or 4.")
    if not given.get("lora_enable") and not given.get("tune_mm_mlp_adapter"):
        raise UserError(f"--bits {bits}: an LLM of {bits} bits cannot be tuned in full; give --lora_enable (QLoRA).")
    if zero_stage(given.get("deepspeed")) == 3:
        raise UserError(
            f"--bits {bits} with ZeRO-3 ({given['deepspeed']}): packed weights cannot be split among ranks; give "
            "--deepspeed configs/zero2.json."
        )
    quantization_config(f"{bits}bit")  # says so if bitsandbytes is missing


def _complete_evaluation(given: dict[str, Any]) -> None:
    """Held-out data is evaluated every tenth of the run unless said otherwise."""
    strategy = given.get("eval_strategy", "no")
    if given.get("eval_data_path") and strategy == "no":
        given["eval_strategy"] = "steps"
        given.setdefault("eval_steps", 0.1)
    elif strategy != "no" and not given.get("eval_data_path"):
        raise UserError("eval_strategy is set, but there is no --eval_data_path to evaluate on.")


def _check_benchmarks(given: dict[str, Any]) -> None:
    """Benchmarks are answered by whole models, each rank its share."""
    if given.get("eval_benchmarks") and zero_stage(given.get("deepspeed")) == 3:
        raise UserError(
            f"--eval_benchmarks with ZeRO-3 ({given['deepspeed']}): a rank has no whole model to answer with; give "
            "--deepspeed configs/zero2.json, or evaluate the checkpoints with python -m llava_sp.eval."
        )
    if not (given.get("eval_benchmark_steps") or 1) > 0:  # NaN is not
        raise UserError(f"--eval_benchmark_steps must be above 0, not {given['eval_benchmark_steps']}.")


def _check_reporters(given: dict[str, Any]) -> None:
    """Where metrics go besides the run's own log: nowhere, or to loggers that are installed."""
    reporters = given.get("report_to", "none").split(",")
    for reporter in reporters:
        if reporter not in REPORTERS:
            raise UserError(f"--report_to {reporter}: choose among {', '.join(REPORTERS)}, separated by commas.")
        if reporter != "none" and importlib.util.find_spec(reporter) is None:
            raise UserError(f"--report_to {reporter}: it is not installed; pip install -e '.[{reporter}]'.")
    if "wandb" in reporters and os.environ.get("WANDB_LOG_MODEL", "false").lower() != "false":
        raise UserError(
            "WANDB_LOG_MODEL is set: weights are not uploaded from here, for checkpoints are completed while the "
            "training goes on. Unset it, and publish the result by 'python -m llava_sp.convert to-hub'."
        )
    given["report_to"] = reporters
