"""Building a model from parts: a pretrained LLM, a pretrained vision tower, and a new projector between them."""

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.tokenization_utils_base import AddedToken
from transformers.utils import cached_file

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.model.configuration_llava_sp import VOCABULARY_MULTIPLE, LlavaSPConfig
from llava_sp.model.image_processing_llava_sp import LlavaSPImageProcessor
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.model.spatial.projector import LlavaSPProjector
from llava_sp.model.tiles import default_pinpoints
from llava_sp.model.trust import check_folder, check_kind, read_config
from llava_sp.model.variants import variant_fields
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import is_hub_name
from llava_sp.utils.tokenization import follow_sentencepiece

PADDING_TOKENS = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>")
"""Unused tokens of Llama 3.1 and Llama 3, whose tokenizers name none for padding."""

SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Fields of LLMs whose logits are more than the head's product (Gemma 2, Cohere, Granite), unless None or 1."""


def configure(
    llm: str,
    vision_tower: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    variant: str = "cropping",
    overrides: dict[str, Any] | None = None,
    image_aspect_ratio: str = "pad",
) -> LlavaSPConfig:
    """Derives the whole configuration from the parts' own configurations; no weights are read.

    Args:
        llm: Name or folder of a decoder LLM.
        vision_tower: Name or folder of a CLIP or SigLIP tower, whole or vision part alone.
        tokenizer: The LLM's tokenizer from `load_tokenizer`.
        variant: A name of `llava_sp.model.variants.VARIANTS`.
        overrides: Fields of `LlavaSPConfig` in place of the variant's.
        image_aspect_ratio: `"anyres"` lays images out on LLaVA-1.6's grids, unless `overrides` has other ones.

    Raises:
        UserError: A configuration cannot be loaded, or the variant does not fit the tower's grid.
    """
    with explained("the LLM", llm):
        text_config = read_config(llm)
    ids = tokenizer.get_vocab()
    image_token_id = ids.pop(IMAGE_TOKEN)
    # Some embeddings have more rows than there are tokens (Qwen's); `<image>` then takes one of those.
    rows = {"llm_vocab_size": min(text_config.vocab_size, max(ids.values()) + 1)}
    fields = {**rows, **variant_fields(variant), **(overrides or {})}
    vision_config = load_vision_config(vision_tower)
    if image_aspect_ratio == "anyres":
        fields.setdefault("image_grid_pinpoints", default_pinpoints(vision_config.image_size))
    return join_configs(text_config, vision_config, image_token_id, fields)


def join_configs(
    text_config: PreTrainedConfig, vision_config: PreTrainedConfig, image_token_id: int, fields: dict[str, Any]
) -> LlavaSPConfig:
    """Joins the parts' configurations, with room for `<image>` in the LLM's vocabulary.

    Args:
        text_config: The LLM's configuration; it is left as it is.
        vision_config: The vision tower's.
        image_token_id: Id of `<image>`.
        fields: Further fields of `LlavaSPConfig`, which win over what follows from the parts.
    """
    text_config = copy.deepcopy(text_config)
    llm_vocab_size = text_config.vocab_size
    text_config.vocab_size = _rows_with_room(llm_vocab_size, image_token_id)
    from_parts = {
        "image_token_index": image_token_id,
        "llm_vocab_size": llm_vocab_size,
        "vision_feature_select_strategy": "default" if _has_class_token(vision_config) else "full",
    }
    return LlavaSPConfig(vision_config=vision_config, text_config=text_config, **{**from_parts, **fields})


@torch.random.fork_rng(devices=[])
def assemble(
    config: LlavaSPConfig, tower: PreTrainedModel, llm: PreTrainedModel, *, seed: int = 0
) -> LlavaSPForCausalLM:
    """Joins loaded parts and a newly initialised projector; nothing is copied.

    Args:
        config: The configuration from `configure`.
        tower: The vision tower.
        llm: The LLM with its head. Its embedding gets the rows that `config` asks for; they start at zero, and are
            never generated.
        seed: Seed of the projector's initialisation; the global random state is left alone.

    Returns:
        The model in evaluation mode, of the LLM's dtype.

    Raises:
        UserError: The LLM makes its logits in another way than by a plain matrix.
    """
    _check_head(llm)
    _make_room(llm, config.text_config.vocab_size)
    with torch.device("meta"):
        model = LlavaSPForCausalLM(config)
    model.model.vision_tower = tower.to(llm.dtype)
    model.model.language_model = llm.base_model
    model.set_output_embeddings(llm.get_output_embeddings())
    new_projector(model, llm.device, llm.dtype, seed)
    model.generation_config = _neutral_generation_config(llm.generation_config)
    model.tie_weights()
    return model.eval()


@torch.random.fork_rng(devices=[])
def new_projector(
    model: LlavaSPForCausalLM, device: torch.device | str, dtype: torch.dtype, seed: int
) -> LlavaSPProjector:
    """Gives the projector of a model without values its first ones, and returns it; the random state is left alone."""
    projector = model.model.multi_modal_projector.to_empty(device=device).to(dtype)
    torch.manual_seed(seed)
    with torch.no_grad():
        projector.apply(model._init_weights)
    return projector


@torch.random.fork_rng(devices=[])
def load_llm(name: str, dtype: torch.dtype | str = "auto", **arguments: Any) -> PreTrainedModel:
    """Loads a decoder LLM with its head."""
    with explained("the LLM", name):
        check_folder(name)
        arguments = {**arguments, "config": read_config(name), "dtype": dtype, "trust_remote_code": False}
        return AutoModelForCausalLM.from_pretrained(name, **arguments)


def load_vision_config(name: str) -> PreTrainedConfig:
    """Loads a tower's configuration, or the vision part of a whole CLIP or SigLIP."""
    with explained("the vision tower", name):
        config = read_config(name)
        config = getattr(config, "vision_config", config)
        check_kind(config)
    return config


@torch.random.fork_rng(devices=[])
def load_tower(name: str, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """Loads a vision tower, or the vision part of a whole CLIP or SigLIP."""
    config = load_vision_config(name)
    with explained("the vision tower", name):
        check_folder(name)
        with torch.device("meta"):
            tower_class = type(AutoModel.from_config(config, trust_remote_code=False))
        return tower_class.from_pretrained(name, config=config, dtype=dtype)


def load_tokenizer(llm: str, max_length: int = 2048) -> PreTrainedTokenizerBase:
    """Loads the LLM's tokenizer and gives it `<image>` and a padding token.

    Args:
        llm: Name or folder of the LLM.
        max_length: Longest sequence in tokens, visual ones included.
    """
    with explained("the tokenizer of the LLM", llm):
        tokenizer = AutoTokenizer.from_pretrained(llm, trust_remote_code=False)
        files = [
            cached_file(llm, name, _raise_exceptions_for_missing_entries=False)
            for name in ("tokenizer.json", "tokenizer.model")
        ]
    if files[0] is None and files[1] is not None:  # as Vicuna's
        follow_sentencepiece(tokenizer, files[1])
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None:
        known = tokenizer.get_vocab()
        reserved = [token for token in PADDING_TOKENS if token in known]
        tokenizer.pad_token = tokenizer.unk_token or next(iter(reserved), tokenizer.eos_token)
    tokenizer.model_max_length = max_length
    tokenizer.padding_side = "left"
    return tokenizer


def make_processor(
    config: LlavaSPConfig,
    tokenizer: PreTrainedTokenizerBase,
    vision_tower: str,
    *,
    image_aspect_ratio: str = "pad",
    conversation_template: str = "v1",
    chat_template: str | None = None,
) -> LlavaSPProcessor:
    """Builds the processor that fits a configuration; the image settings are the vision tower's own.

    Args:
        config: The model's configuration.
        tokenizer: The LLM's tokenizer from `load_tokenizer`.
        vision_tower: Name or folder of the vision tower, for its `preprocessor_config.json`.
        image_aspect_ratio: `"square"` or `"pad"`, see `LlavaSPImageProcessor`; that of a configuration with
            `image_grid_pinpoints` is `"anyres"` in any case.
        conversation_template: Name of the conversation that the model is tuned with.
        chat_template: The same conversation as a Jinja template.
    """
    has_class_token = config.vision_feature_select_strategy == "default"
    return LlavaSPProcessor(
        image_processor=_image_processor(config, vision_tower, image_aspect_ratio),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=chat_template,
        num_additional_image_tokens=config.num_spatial_tokens + has_class_token,
        conversation_template=conversation_template,
        patch_merge_type=config.patch_merge_type,
    )


def set_endings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, end_of_turn: int | None) -> None:
    """Tells generation by which tokens an answer ends, and by which finished rows of a batch are filled up.

    Args:
        model: The model; its `generation_config` is changed. The ends that it knows already stay.
        tokenizer: Its tokenizer from `load_tokenizer`.
        end_of_turn: Id of the token by which the conversation's answers end, if one token does.
    """
    generation = model.generation_config
    known = generation.eos_token_id
    ends = {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id, end_of_turn}
    generation.eos_token_id = sorted(end for end in ends if end is not None)
    generation.pad_token_id = tokenizer.pad_token_id


@contextmanager
def explained(what: str, name: str) -> Iterator[None]:
    """Turns the libraries' many ways of not finding or not understanding a file into one sentence that names it."""
    cannot = f"Cannot load {what} from {str(name)[:200]!r}"
    if name and not is_hub_name(str(name)) and not os.path.exists(name):
        raise UserError(f"{cannot}: there is no such folder, and it is no name on the Hugging Face Hub.")
    try:
        yield
    except (UserError, torch.OutOfMemoryError, MemoryError):
        raise
    except SafetensorError as error:
        raise UserError(f"{cannot}: a file is damaged ({error}). Get it again.") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{cannot}. Give a folder that holds it, or the name of a repository on the Hugging Face Hub that this "
            f"machine can reach. ({reason(error)})"
        ) from error
    except ImportError as error:
        raise UserError(f"{cannot}: {reason(error)}.") from error
    except Exception as error:  # on content that they do not expect, the libraries raise anything
        raise UserError(
            f"{cannot}: a file is damaged, or holds what it should not ({type(error).__name__}: {reason(error)})."
        ) from error


def reason(error: Exception) -> str:
    """Returns the beginning of what an error says; of a pickle's, what was found in it, not how to have it run."""
    said = str(error).strip()
    found = re.search(r"WeightsUnpickler error: (\S.*)", said)
    line = found[1] if found else re.sub(r":\n\s*", ": ", said).split("\n")[0]
    return re.split(r" (?:Please use|In PyTorch 2|This file can still)", line)[0].rstrip(". :")[:200]


def absolute(name: str) -> str:
    """Returns a local folder's absolute path, and the name of a Hub repository as it is."""
    return str(Path(name).resolve()) if os.path.exists(name) else name


def _image_processor(config: LlavaSPConfig, vision_tower: str, image_aspect_ratio: str) -> LlavaSPImageProcessor:
    with explained("the preprocessor_config.json of the vision tower", vision_tower):
        settings, _ = ImageProcessingMixin.get_image_processor_dict(vision_tower)
    side = config.vision_config.image_size
    kept = ("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    return LlavaSPImageProcessor(
        **{name: settings[name] for name in kept if settings.get(name) is not None},
        do_center_crop=settings.get("do_center_crop", False),
        crop_size={"height": side, "width": side},
        image_aspect_ratio=image_aspect_ratio if config.image_grid_pinpoints is None else "anyres",
        image_grid_pinpoints=config.image_grid_pinpoints,
    )


@torch.random.fork_rng(devices=[])
def _has_class_token(vision_config: PreTrainedConfig) -> bool:
    """Tells by the length of the tower's output, from shapes alone."""
    if not isinstance(getattr(vision_config, "image_size", None), int):
        raise UserError(f"The vision tower {vision_config.model_type!r} does not take images of one square image size.")
    with torch.device("meta"):
        tower = AutoModel.from_config(vision_config, trust_remote_code=False)
        side = vision_config.image_size
        tokens = tower(torch.empty(1, vision_config.num_channels, side, side)).last_hidden_state.shape[1]
    extra = tokens - (side // vision_config.patch_size) ** 2
    if extra not in (0, 1):
        raise UserError(
            f"The vision tower {vision_config.model_type!r} puts out {extra} tokens beside its patches; "
            "only towers with a class token (CLIP) or none (SigLIP) are supported."
        )
    return extra == 1


def _rows_with_room(rows: int, image_token_id: int) -> int:
    if image_token_id < rows:
        return rows
    return -(-(image_token_id + 1) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def _check_head(llm: PreTrainedModel) -> None:
    scaled = [name for name in SCALED_HEADS if getattr(llm.config, name, None) not in (None, 1.0)]
    if scaled or getattr(llm.get_output_embeddings(), "bias", None) is not None:
        raise UserError(
            f"LLMs of the type {llm.config.model_type!r} are not supported: their head does more than multiply by a "
            f"matrix ({', '.join(scaled) or 'it has a bias'})."
        )


def _make_room(llm: PreTrainedModel, rows: int) -> None:
    """Adds rows of zeros to the LLM's embedding and head."""
    before = llm.config.vocab_size
    if rows <= before:
        return
    llm.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()):
            layer.weight[before:] = 0.0


def _neutral_generation_config(generation: GenerationConfig) -> GenerationConfig:
    """Keeps the special ids; some LLMs ship sampling settings that contradict themselves and cannot be saved."""
    return GenerationConfig(
        bos_token_id=generation.bos_token_id,
        eos_token_id=generation.eos_token_id,
        pad_token_id=generation.pad_token_id,
    )
