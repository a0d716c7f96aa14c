"""Import of official LLaVA-SP checkpoints, and of LLaVA-1.5's: the variant without spatial tokens, or a warm start.

Full checkpoints, LoRA outputs, and the projector alone are told apart by the files in their folder. The result is
always a full checkpoint of this project: LoRA is merged, as the official loader does.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.convert.layout import Layout, read_as, read_layout
from llava_sp.convert.lora import merge_lora
from llava_sp.convert.ours import (
    PROJECTOR,
    VOCABULARY,
    Checkpoint,
    describe,
    empty_model,
    fit,
    llm_name,
    read_tower,
    saved_dtype,
    tower_name,
    with_rows,
    write_checkpoint,
)
from llava_sp.convert.source import Source, read_source
from llava_sp.convert.tensors import LazyTensor, Tensors, find_file
from llava_sp.convert.verify import Agreement, verify_import
from llava_sp.convert.writing import output_folder
from llava_sp.data.conversation import get_template
from llava_sp.model import parts
from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.image_processing_llava_sp import ImageAspectRatio
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.model.variants import variant_fields
from llava_sp.utils.errors import UserError


@dataclass
class Report:
    """What an import found.

    Args:
        source: What the folder held: `full`, `lora`, `projector` or `llava-hf`.
        fields: The variant, as fields of the configuration.
        initialised: Tensors that are new: official ones that were missing and allowed by name, or those that a warm
            start adds.
        left_over: Official tensors that were not used: allowed by name, or never read by the official code either.
        agreement: How far the result's logits are from the source's, where that was asked for.
    """

    source: str
    fields: dict[str, Any]
    initialised: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    agreement: Agreement | None = None


def import_official(
    checkpoint: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    vision_tower: str | None = None,
    variant: str | None = None,
    conversation_template: str = "v1",
    allow_missing: Iterable[str] = (),
    allow_left_over: Iterable[str] = (),
    dtype: torch.dtype | None = None,
    seed: int = 0,
    verify: bool = False,
) -> Report:
    """Converts a checkpoint of others into a full checkpoint of this project.

    Args:
        checkpoint: Folder or Hub name of the checkpoint.
        output: Folder to write; it must not exist, or be empty.
        base: The LLM that a LoRA or projector output stands on, in place of the one that the adapter names.
        vision_tower: The vision tower, in place of the one that `config.json` names.
        variant: A variant to warm-start from a checkpoint without spatial tokens; the new parts are initialised.
        conversation_template: Template that the model was tuned with.
        allow_missing: Official names of tensors that may be missing; they are newly initialised.
        allow_left_over: Official names of tensors that may be ignored.
        dtype: Type to write; the LLM's where it is None.
        seed: Seed of what is newly initialised.
        verify: Whether to compare the logits of source and result.

    Raises:
        UserError: The folder is no such checkpoint; tensors are missing, left over, or of an unexpected shape; or the
            result's logits differ from the source's.
    """
    with output_folder(output) as folder:
        source = read_source(str(checkpoint), base)
        tower_home = vision_tower or _tower_home(source)
        vision_config = parts.load_vision_config(tower_home)
        layout = _layout(source, vision_config, variant)
        tokenizer = parts.load_tokenizer(source.llm, source.config.get("tokenizer_model_max_length", 2048))
        text_config = source.text_config
        text_config.vocab_size = _own_rows(source, tokenizer)
        for part, home in ((text_config, source.llm), (vision_config, tower_home)):
            part.name_or_path = parts.absolute(home)  # where an export finds tokenizer and tower again
        image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        with parts.explained("the configuration", str(checkpoint)):
            fields = {**_vision_fields(source.config), **layout.fields}
            config = parts.join_configs(text_config, vision_config, image_token_id, fields)

        tensors = _llm_and_tower(source, tower_home)
        dtype = dtype or saved_dtype(tensors)
        projector, report = _projector(
            source, layout, config, set(allow_missing), set(allow_left_over), new=variant is not None
        )
        if verify and variant is None and report.initialised:
            raise UserError(
                "What the source lacks cannot be verified against it; leave out --verify or --allow-missing."
            )
        if report.initialised:
            projector = initialise(config, dtype, seed) | projector
        tensors |= {f"{PROJECTOR}{name}": tensor for name, tensor in projector.items()}

        processor = _processor(source, config, tokenizer, tower_home, conversation_template)
        details = {"imported_from": str(checkpoint), "initialised": report.initialised, "left_over": report.left_over}
        card = describe(config, processor, stage="import", details=details)
        generation = _generation_config(source.llm, text_config)
        write_checkpoint(folder, Checkpoint(config, processor, generation, card, fit(tensors, config)), dtype)
        if verify:
            report.agreement = verify_import(source, tower_home, folder, dtype, without_spatial=variant is not None)
    return report


def _processor(
    source: Source, config: LlavaSPConfig, tokenizer: PreTrainedTokenizerBase, tower_home: str, template_name: str
) -> LlavaSPProcessor:
    template = get_template(template_name)
    return parts.make_processor(
        config,
        tokenizer,
        tower_home,
        image_aspect_ratio=_aspect_ratio(source.config),
        conversation_template=template.name,
        chat_template=template.chat_template(),
    )


def initialise(config: LlavaSPConfig, dtype: torch.dtype, seed: int) -> Tensors:
    """Returns a new projector, by the names of `LlavaSPProjector`: the same as a model built from parts has."""
    projector = parts.new_projector(empty_model(config), "cpu", dtype, seed)
    return {name: LazyTensor.of(tensor, name) for name, tensor in projector.state_dict().items()}


def _layout(source: Source, vision_config: PreTrainedConfig, variant: str | None) -> Layout:
    grid_side = vision_config.image_size // vision_config.patch_size
    layout = read_layout({name: tensor.shape for name, tensor in source.projector.items()}, grid_side)
    if variant is None:
        return layout
    if layout.fields["sfe_maps"] != "none":
        raise UserError(f"{source.home} has spatial tokens of its own; leave --variant out, and they are imported.")
    return Layout(variant_fields(variant), grid_side, {})


def _llm_and_tower(source: Source, tower_home: str) -> Tensors:
    weights = source.weights
    if source.lora:
        with torch.device("meta"), parts.explained("the LLM", source.llm):
            llm = AutoModelForCausalLM.from_config(source.text_config, trust_remote_code=False)
        weights = merge_lora(weights, source.lora, source.home, llm, source.llm)
    tensors = {llm_name(name): tensor for name, tensor in weights.items()}
    if source.kind == "llava-hf":  # less the rows that are not the LLM's
        vocabulary = tensors.keys() & VOCABULARY
        tensors |= {name: with_rows(tensors[name], source.text_config.vocab_size) for name in vocabulary}
    tower = {tower_name(name): tensor for name, tensor in source.tower.items()}
    return tensors | (tower or read_tower(tower_home))


def _projector(
    source: Source,
    layout: Layout,
    config: LlavaSPConfig,
    allow_missing: set[str],
    allow_left_over: set[str],
    *,
    new: bool,
) -> tuple[Tensors, Report]:
    """Accounts for every tensor of the projector; what does not fit is an error that lists it.

    Args:
        source: The checkpoint.
        layout: Its layout.
        config: The configuration that follows from it.
        allow_missing: Official names that may be missing.
        allow_left_over: Official names that may be left over.
        new: Whether the spatial part is to be initialised.
    """
    report = Report(source.kind, dict(layout.fields))
    found: Tensors = {}
    read, unused, missing = set(), set(), set()
    for ours in empty_model(config).model.multi_modal_projector.state_dict():
        if new and ours.startswith("spatial."):
            report.initialised.append(ours)
            continue
        official = layout.official(ours)
        name = read_as(official.name)
        if name != official.name:
            unused.add(official.name)
        if name in source.projector:
            tensor = source.projector[name]
            found[ours] = tensor.then(official.to_ours) if official.to_ours else tensor
            read.add(name)
        else:
            missing.add(name)
    report.initialised += sorted(missing)
    report.left_over = sorted(source.projector.keys() - read)
    problems = []
    if refused := [name for name in sorted(missing) if name not in allow_missing]:
        problems.append(f"missing: {', '.join(refused)} (allow with --allow-missing NAME; they are newly initialised)")
    if refused := [name for name in report.left_over if name not in allow_left_over | unused]:
        problems.append(f"left over: {', '.join(refused)} (allow with --allow-left-over NAME; they are ignored)")
    if problems:
        raise UserError(
            f"The projector in {source.home} is not what its keys promise. {'; '.join(problems)}.{_hint(source)}"
        )
    return found, report


def _hint(source: Source) -> str:
    if source.kind != "projector" or find_file(source.home, "model.bin"):
        return ""
    return " An official checkpoint-N/mm_projector.bin never holds all of it; take the model.bin of the end of the run."


def _tower_home(source: Source) -> str:
    name = source.config.get("mm_vision_tower")
    if not name:
        raise UserError(f"{source.home}/config.json names no mm_vision_tower; give --vision-tower.")
    beside = Path(source.home, str(name))
    return str(beside if beside.is_dir() else name)


def _own_rows(source: Source, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns how many rows of the vocabulary the LLM was trained with.

    llava-hf adds `<image>`, a padding token, and rows up to a round number, whose random values take part in its
    softmax. Where nothing but such tokens follows `<image>`, the rows from it on are not the LLM's.
    """
    rows = source.text_config.vocab_size
    if source.kind != "llava-hf":
        return rows
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    later = {token for token in tokenizer.get_vocab().values() if token > image_token_id}
    only_added = later <= set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    return min(rows, image_token_id) if only_added else rows


def _vision_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Returns LLaVA's own fields under our names."""
    if config.get("mm_use_im_start_end"):
        raise UserError("config.json puts <im_start> and <im_end> around images (LLaVA 1.0); that is not supported.")
    takes_all = config.get("mm_vision_select_feature") == "cls_patch"
    fields = {
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": "full" if takes_all else "default",
    }
    if config.get("image_aspect_ratio") != "anyres":
        return fields
    pinpoints = config.get("image_grid_pinpoints")
    if not isinstance(pinpoints, list):
        raise UserError(f"config.json asks for anyres, with image_grid_pinpoints {pinpoints!r}; a list is needed.")
    # LLaVA's sizes are (width, height).
    return {
        **fields,
        "image_grid_pinpoints": [[height, width] for width, height in pinpoints],
        "patch_merge_type": config.get("mm_patch_merge_type", "flat"),
    }


def _aspect_ratio(config: dict[str, Any]) -> str:
    ratio = config.get("image_aspect_ratio", "square")
    if ratio not in get_args(ImageAspectRatio):
        known = ", ".join(get_args(ImageAspectRatio))
        raise UserError(f"config.json asks for image_aspect_ratio {ratio!r}; supported are {known}.")
    return ratio


def _generation_config(llm: str, text_config: PreTrainedConfig) -> GenerationConfig:
    """Keeps the special ids of the LLM's own settings; some contradict themselves and cannot be saved."""
    found = find_file(llm, "generation_config.json")
    settings = GenerationConfig.from_pretrained(llm) if found else GenerationConfig.from_model_config(text_config)
    return GenerationConfig(
        bos_token_id=settings.bos_token_id, eos_token_id=settings.eos_token_id, pad_token_id=settings.pad_token_id
    )
