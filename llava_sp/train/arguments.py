"""Every argument of a training run, in three dataclasses: model, data, training.

Names are LLaVA's and those of Hugging Face's `TrainingArguments`, so that commands written for either keep working. The
same names serve as keys in YAML files. Each argument's help is one line, with its unit where it has one.
"""

# ruff: noqa: RUF009 - `argument` makes a `dataclasses.field`

from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments

from llava_sp.model.loading import SPATIAL_FIELDS

STAGES = ("pretrain", "finetune_lora", "finetune")
"""Stage 1 tunes the projector and the spatial modules; stage 2 tunes them and the LLM, by LoRA or in full."""

SPATIAL_ARGUMENTS = (*SPATIAL_FIELDS, "num_spatial_tokens")
"""Arguments that override single fields of the variant in the model's configuration."""

LORA_FIELDS = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
"""Arguments of LoRA, and what PEFT's configuration calls them."""


def argument(default: Any, help: str) -> Any:
    """Declares an argument with its default and its line of help."""
    return field(default=default, metadata={"help": help.replace("%", "%%")})


@dataclass
class ModelArguments:
    """Which model is trained, what it starts from, and which of its parts learn."""

    model_name_or_path: str = argument("", "The LLM: a folder or a name on the Hugging Face hub.")
    vision_tower: str = argument("", "The vision tower (CLIP or SigLIP): a folder or a name on the hub.")
    variant: str | None = argument(None, "Named variant of the spatial part; 'none' is LLaVA-1.5.")
    init_from: str | None = argument(
        None, "Checkpoint of this project to start from, of any stage; its folder says what it is."
    )
    allow_other_base: bool = argument(False, "Start although an LLM or tower has other weights than init_from's had.")
    conversation: str = argument("v1", "Conversation template of the LLM: what --version is in stage 2, if not given.")
    version: str = argument("v1", "Conversation template of this stage; in stage 1 plain, if not given.")
    tune_mm_mlp_adapter: bool = argument(False, "Stage 1: tune the projector and the spatial modules only.")
    lora_enable: bool = argument(False, "Stage 2 by LoRA on the LLM, besides the projector and the spatial modules.")
    lora_r: int = argument(64, "Rank of LoRA.")
    lora_alpha: int = argument(16, "Scale of LoRA: its update is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = argument(0.05, "Dropout probability in front of LoRA.")
    bits: int = argument(16, "Bits per weight of the frozen LLM: 16, or 4 or 8 by bitsandbytes (QLoRA).")
    double_quant: bool = argument(True, "With 4 bits: quantise their scales too.")
    quant_type: Literal["nf4", "fp4"] = argument("nf4", "With 4 bits: the type of number.")
    sfe_maps: Literal["cropping", "pooling", "none"] | None = argument(None, "How the SFE makes its maps.")
    sfe_operator: Literal["conv", "transformer"] | None = argument(None, "What turns a map into a spatial token.")
    sfe_sides: list[int] | None = argument(None, "Sides of the maps in patches, one spatial token each.")
    num_spatial_tokens: int | None = argument(None, "Number of spatial tokens; their sides follow in equal steps.")
    sfe_channels: int | None = argument(None, "Channels of a spatial token inside the SFE and the DFI.")
    dfi_kernels: list[int] | None = argument(None, "Kernel sides of the DFI in patches; none given switches it off.")
    dfi_stride: int | None = argument(None, "Stride of the DFI's convolutions in patches.")
    dfi_fusion: Literal["concat", "sum"] | None = argument(None, "How the features of several DFI kernels join.")
    spatial_bias: bool | None = argument(None, "Whether the spatial tokens' output projection has a bias.")
    mm_patch_merge_type: Literal["flat", "spatial", "spatial_unpad"] | None = argument(
        None, "With --image_aspect_ratio anyres: how the tiles of an image become one sequence; flat if not given."
    )
    mm_vision_select_layer: int = argument(-2, "Hidden layer of the tower whose patch features are used.")
    # LLaVA's remaining names: `legacy.py` says which of their values are followed, idle, or refused.
    pretrain_mm_mlp_adapter: str | None = argument(None, "LLaVA's name for --init_from a stage 1 checkpoint.")
    mm_projector_type: str | None = argument(None, "Patch projector; mlp2x_gelu is the one there is.")
    mm_vision_select_feature: str | None = argument(None, "Features of the tower; patch is the one there is.")
    mm_use_im_start_end: bool = argument(False, "Tokens around an image; only False is supported.")
    mm_use_im_patch_token: bool = argument(False, "LLaVA's patch token; it has no effect here.")
    freeze_backbone: bool = argument(False, "LLaVA's name for leaving the LLM frozen: as --tune_mm_mlp_adapter.")
    freeze_mm_mlp_adapter: bool = argument(False, "Freezing the projector; only False is supported.")
    lora_bias: str = argument("none", "Biases tuned with LoRA; only 'none' is supported.")
    mpt_attn_impl: str | None = argument(None, "LLaVA's setting for MPT; it has no effect here.")
    cache_dir: str | None = argument(None, "Where hub downloads lie; use the environment variable HF_HOME.")

    @property
    def stage(self) -> str:
        """What is trained: one of `STAGES`."""
        if self.tune_mm_mlp_adapter:
            return "pretrain"
        return "finetune_lora" if self.lora_enable else "finetune"

    @property
    def spatial_overrides(self) -> dict[str, Any]:
        """The fields of the spatial part that were given, over those of the variant."""
        return {name: value for name in SPATIAL_ARGUMENTS if (value := getattr(self, name)) is not None}


@dataclass
class DataArguments:
    """What the model learns from."""

    data_path: str = argument("", "Training data: a JSON file in LLaVA's format.")
    image_folder: str = argument("", "Folder that the data's image paths are relative to.")
    eval_data_path: str | None = argument(None, "Held-out data in the same format; its loss is logged as eval_loss.")
    image_aspect_ratio: Literal["square", "pad", "anyres"] = argument(
        "square",
        "How an image becomes a square: cropped (square), padded (pad), or laid out on several tiles (anyres).",
    )
    image_grid_pinpoints: str | None = argument(
        None,
        'With anyres: sizes in pixels, (width, height) as in LLaVA, of the grids of tiles, "[(336, 672), (672, 336)]"; '
        "LLaVA-1.6's if not given.",
    )
    check_data: Literal["sample", "full", "off"] = argument(
        "sample", "Check of the data before training: a sample of it, all of it (full), or none (off)."
    )
    lazy_preprocess: bool = argument(True, "LLaVA's name for reading samples when needed; that is always so here.")
    is_multimodal: bool = argument(True, "LLaVA's switch; it has no effect here.")


@dataclass
class TrainArguments(TrainingArguments):
    """Hugging Face's `TrainingArguments`, with what this project adds and other defaults for a few."""

    model_max_length: int = argument(2048, "Longest sequence in tokens, visual tokens included; the rest is cut off.")
    mm_projector_lr: float | None = argument(
        None, "Learning rate of the projector and the spatial modules; --learning_rate where not given."
    )
    group_by_modality_length: bool = argument(
        False, "Steps of one modality (with or without image), and micro-batches of about as many words each."
    )
    global_batch_size: int | None = argument(
        None, "Samples per optimizer step over all ranks; gradient_accumulation_steps follows from it."
    )
    loss_average: Literal["token", "microbatch"] = argument(
        "token",
        "token: every supervised token of an optimizer step weighs the same, over accumulation and ranks (default of "
        "transformers 5). microbatch: the mean of the micro-batches' means, as LLaVA-1.5 was trained.",
    )
    eval_benchmarks: str | None = argument(
        None, "Benchmarks to answer and score while training, separated by commas; see python -m llava_sp.eval."
    )
    eval_benchmark_steps: float | None = argument(
        None,
        "Optimizer steps between two of these evaluations (a share of all steps if < 1); default: eval_steps where "
        "there is held-out data, else save_steps. The last step is always evaluated.",
    )
    eval_data_root: str = argument("playground/data/eval", "Folder of the benchmarks' folders, in LLaVA's layout.")
    max_bad_share: float = argument(
        0.001,
        "Share of the samples that may be unreadable: others take their place, and quarantine.jsonl lists them. At 0 "
        "the first one stops the run.",
    )
    stall_timeout: float = argument(
        600,
        "Seconds without progress after which all ranks end and name the one that has stopped; 0 never. The first "
        "step, a checkpoint and a batch of an evaluation may take three times as long.",
    )
    ddp_timeout: int = argument(
        3600, "Seconds after which a rank gives up waiting for others; best above four times --stall_timeout."
    )
    dry_run: bool = argument(False, "Print arguments, trainable parameters, memory and the first sample; then exit.")
    stop_after_steps: int | None = argument(
        None,
        "Save a checkpoint and exit after this optimizer step; the schedule stays that of the whole run, and the same "
        "command without it continues. For time-limited jobs, and for testing resumption.",
    )
    per_device_eval_batch_size: int = argument(
        8, "Samples at a time in an evaluation, per GPU or process; default: as in the training."
    )
    logging_steps: float = argument(10, "Optimizer steps between two lines of the log (a share of all steps if < 1).")
    # A NaN must stop the run (see trainer.py), not be logged as zero.
    logging_nan_inf_filter: bool = argument(False, "Replaced by a check that stops the run at a NaN or infinite loss.")
    # The collator needs all columns; Trainer would drop those that `forward` does not name.
    remove_unused_columns: bool = argument(False, "Leave False: the collator needs every column.")
    prediction_loss_only: bool = argument(True, "Held-out data yields its loss only, not its logits.")
