"""From arguments to the objects of a run: model, processor, datasets."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from llava_sp.data.conversation import get_template
from llava_sp.data.dataset import ConversationDataset
from llava_sp.data.records import open_records
from llava_sp.model import loading, parts
from llava_sp.model.card import Card
from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.model.quantization import compute_in, quantization_config
from llava_sp.model.tiles import default_pinpoints
from llava_sp.model.trainable import add_lora, plain_model, set_trainable
from llava_sp.train.arguments import LORA_FIELDS, ModelArguments
from llava_sp.train.command_line import RunArguments
from llava_sp.train.legacy import read_pinpoints
from llava_sp.utils.errors import UserError
from llava_sp.utils.logging import get_logger

logger = get_logger(__name__)

TRAINED_PARTS = {"pretrain": ("projector",), "finetune": ("projector", "llm"), "finetune_lora": ("projector",)}
"""What each stage trains; LoRA comes on top in the last."""


@contextmanager
def whole_weights(run: RunArguments) -> Iterator[None]:
    """Keeps transformers from splitting weights among ranks while they load (ZeRO-3).

    Parts are joined to a model first; DeepSpeed splits that when it takes over. Until then each rank holds all of it in
    the memory of the machine.
    """
    config = getattr(run.training, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


def load_model(run: RunArguments, resume: Path | None) -> tuple[nn.Module, LlavaSPProcessor]:
    """Loads the model with its trainable parameters chosen, and the processor for this run's conversation.

    A run that continues is loaded from its checkpoint, by the path alone, like any other checkpoint.

    Args:
        run: The run's arguments.
        resume: The checkpoint to continue from, if any.

    Raises:
        UserError: A part is not there, or what is given does not fit the checkpoint to start from.
    """
    arguments, source = run.model, resume or run.model.init_from
    held: dict[str, Any] = {"dtype": _loading_dtype(run), **_quantization(run)}
    if source is None:
        if run.model.stage != "pretrain":
            logger.warning("No --init_from: the projector and the spatial modules start untrained in stage 2.")
        model, processor = loading.build(
            arguments.model_name_or_path,
            arguments.vision_tower,
            variant=arguments.variant or "cropping",
            overrides=_overrides(run),
            image_aspect_ratio=run.data.image_aspect_ratio,
            seed=run.training.seed,
            **held,
        )
    else:
        card = check_start(arguments, str(source)) if resume is None else loading.read_card(str(source))
        continues_lora = card is not None and card.kind == "adapter" and arguments.stage == "finetune_lora"
        config = starting_config(run, str(source))
        base = (arguments.model_name_or_path or None) if card is not None and card.kind != "full" else None
        other = arguments.allow_other_base
        model, processor = loading.load(source, base, merge=not continues_lora, allow_other_base=other, **held)
        _lay_out_tiles(model, config, run.training.seed)
    ready = choose_trainables(model, arguments)
    if arguments.bits < 16:
        # Trainer would refuse a model that is quantised and has no LoRA; what stage 1 trains of it is not quantised.
        plain_model(ready).is_quantized = False
    _settle_types(ready, run)
    set_processor(processor, run, plain_model(ready).config)
    template, tokenizer = get_template(processor.conversation_template), processor.tokenizer
    parts.set_endings(plain_model(ready), tokenizer, template.end_token_id(tokenizer))
    return ready, processor


def choose_trainables(model: LlavaSPForCausalLM | PeftModel, arguments: ModelArguments) -> nn.Module:
    """Freezes what the stage does not train, and adds LoRA where it is asked for and not there yet."""
    if isinstance(model, PeftModel):
        config = model.peft_config[model.active_adapter]
        for flag, name in LORA_FIELDS.items():
            given, found = getattr(arguments, flag), getattr(config, name)
            if given != found:
                raise UserError(
                    f"--{flag} {given}, but the LoRA to continue has {found}; give --{flag} {found}, or for a new LoRA "
                    "merge the old one first (python -m llava_sp.convert merge-lora)."
                )
        return model
    set_trainable(model, TRAINED_PARTS[arguments.stage])
    if arguments.stage == "finetune_lora":
        return add_lora(model, rank=arguments.lora_r, alpha=arguments.lora_alpha, dropout=arguments.lora_dropout)
    return model


def check_start(arguments: ModelArguments, source: str) -> Card | None:
    """Checks that the arguments do not contradict the checkpoint to start from; returns its card.

    Raises:
        UserError: Variant, spatial fields, tower or its layer differ from the checkpoint's, or it would be merged into
            an LLM that is quantised.
    """
    card = loading.read_card(source)
    config = LlavaSPConfig.from_pretrained(source)
    layer = arguments.mm_vision_select_layer
    wanted: dict[str, tuple[str, Any]] = {"vision_feature_layer": (f"--mm_vision_select_layer {layer}", layer)}
    if arguments.variant is not None:
        fitting = LlavaSPConfig.from_variant(
            arguments.variant, vision_config=config.vision_config, text_config=config.text_config
        )
        given = f"--variant {arguments.variant}"
        wanted.update({name: (given, getattr(fitting, name)) for name in loading.SPATIAL_FIELDS})
    wanted.update({name: (f"--{name} {value}", value) for name, value in arguments.spatial_overrides.items()})
    for name, (given, value) in wanted.items():
        if getattr(config, name) != value:
            raise UserError(
                f"{given} does not fit {source}, whose {name} is {getattr(config, name)!r}; the checkpoint to start "
                "from decides that, so leave the flag out, or start from another."
            )
    if card is not None and card.kind == "adapter" and arguments.stage == "pretrain" and arguments.bits < 16:
        raise UserError(
            f"{source} is a LoRA, which cannot be merged into an LLM of {arguments.bits} bits; merge it first "
            "(python -m llava_sp.convert merge-lora) and start from the result."
        )
    tower = arguments.vision_tower
    if tower and card is not None and card.parts.get("vision_tower", tower) not in (tower, parts.absolute(tower)):
        raise UserError(
            f"--vision_tower {tower} differs from {card.parts['vision_tower']}, which {source} was trained with."
        )
    return card


def plan_model(run: RunArguments) -> tuple[nn.Module, LlavaSPProcessor]:
    """Like `load_model`, but without weights: the model lies on the meta device, its parameters chosen."""
    arguments = run.model
    if arguments.init_from:
        check_start(arguments, arguments.init_from)
        config = starting_config(run, arguments.init_from)
        processor = LlavaSPProcessor.from_pretrained(arguments.init_from)
    else:
        tokenizer = parts.load_tokenizer(arguments.model_name_or_path, run.training.model_max_length)
        config = parts.configure(
            arguments.model_name_or_path,
            arguments.vision_tower,
            tokenizer,
            variant=arguments.variant or "cropping",
            overrides=_overrides(run),
            image_aspect_ratio=run.data.image_aspect_ratio,
        )
        processor = parts.make_processor(config, tokenizer, arguments.vision_tower)
    with torch.device("meta"):
        model = choose_trainables(LlavaSPForCausalLM(config), arguments)
    set_processor(processor, run, config)
    return model, processor


def starting_config(run: RunArguments, source: str) -> LlavaSPConfig:
    """Returns the configuration in which a checkpoint goes on: its own, laid out on tiles if this run asks for it.

    Raises:
        UserError: It has tiles already, and this run does not want them, or wants them in another order.
    """
    config = LlavaSPConfig.from_pretrained(source)
    wanted = run.data.image_aspect_ratio == "anyres"
    if config.image_grid_pinpoints is not None:
        merge = run.model.mm_patch_merge_type or config.patch_merge_type
        if not wanted or merge != config.patch_merge_type:
            raise UserError(
                f"{source} was trained on images of several tiles in the order {config.patch_merge_type!r}; give "
                f"--image_aspect_ratio anyres --mm_patch_merge_type {config.patch_merge_type}, or start from another."
            )
    if wanted:
        own = config.image_grid_pinpoints or default_pinpoints(config.vision_config.image_size)
        config.image_grid_pinpoints = read_pinpoints(run.data.image_grid_pinpoints) or own
        config.patch_merge_type = run.model.mm_patch_merge_type or config.patch_merge_type
        config.check_tile_fields()
    return config


def _lay_out_tiles(model: LlavaSPForCausalLM | PeftModel, config: LlavaSPConfig, seed: int) -> None:
    if config.image_grid_pinpoints is None:
        return
    plain = plain_model(model)
    if isinstance(model, PeftModel) and config.patch_merge_type != plain.config.patch_merge_type:
        raise UserError(
            f"The LoRA to continue saw one tile an image, and --mm_patch_merge_type {config.patch_merge_type} changes "
            "its projector; merge it first (python -m llava_sp.convert merge-lora) and start from the result."
        )
    if plain.model.lay_out_tiles(config.image_grid_pinpoints, config.patch_merge_type, seed):
        logger.warning("The token that closes a row of patches (image_newline) is new and starts untrained.")


def set_processor(processor: LlavaSPProcessor, run: RunArguments, config: LlavaSPConfig) -> None:
    """Makes the processor that of this run: its conversation, image shape, tiles, and longest sequence."""
    template = get_template(run.model.version)
    processor.conversation_template = template.name
    processor.chat_template = template.chat_template()
    processor.image_processor.image_aspect_ratio = run.data.image_aspect_ratio
    processor.image_processor.image_grid_pinpoints = config.image_grid_pinpoints
    processor.patch_merge_type = config.patch_merge_type
    processor.tokenizer.model_max_length = run.training.model_max_length


def make_dataset(
    path: str, run: RunArguments, processor: LlavaSPProcessor, *, replace_bad: bool = False
) -> ConversationDataset:
    """Opens a data file as samples ready for the model; others take the place of unreadable ones if `replace_bad`.

    Raises:
        UserError: The file cannot be read as LLaVA's format.
    """
    return ConversationDataset(
        open_records(path),
        image_folder=run.data.image_folder or None,
        tokenizer=processor.tokenizer,
        image_token_id=processor.image_token_id,
        image_processor=processor.image_processor,
        template=get_template(processor.conversation_template),
        num_image_tokens=processor.num_image_tokens_of if processor.tile_layout else processor.num_image_tokens,
        max_length=run.training.model_max_length,
        replace_bad=replace_bad,
    )


def _overrides(run: RunArguments) -> dict[str, Any]:
    """The configuration's fields that were given, over those of the variant."""
    tiles = {
        "patch_merge_type": run.model.mm_patch_merge_type,
        "image_grid_pinpoints": read_pinpoints(run.data.image_grid_pinpoints),
    }
    return {
        **run.model.spatial_overrides,
        **{name: value for name, value in tiles.items() if value is not None},
        "vision_feature_layer": run.model.mm_vision_select_layer,
    }


def _loading_dtype(run: RunArguments) -> torch.dtype:
    """DeepSpeed keeps fp32 masters of 16-bit weights; without it, what learns is kept in fp32 itself."""
    if run.training.deepspeed and run.training.bf16:
        return torch.bfloat16
    if run.training.deepspeed and run.training.fp16:
        return torch.float16
    return torch.float32


def _quantization(run: RunArguments) -> dict[str, Any]:
    """Arguments of loading for `--bits`: each rank quantises on its own device."""
    arguments = run.model
    if arguments.bits == 16:
        return {}
    config = quantization_config(
        f"{arguments.bits}bit", quant_type=arguments.quant_type, double_quant=arguments.double_quant
    )
    return {"quantization_config": config, "device_map": str(run.training.device)}


def _settle_types(model: nn.Module, run: RunArguments) -> None:
    """Without DeepSpeed, frozen weights take half the room where the run is in 16 bits; autocast does the rest."""
    half = torch.bfloat16 if run.training.bf16 else torch.float16
    if run.training.deepspeed or not (run.training.bf16 or run.training.fp16):
        return
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(half)
    compute_in(model, half)
