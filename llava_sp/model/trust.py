"""What files from elsewhere may not decide: which code runs, and which other files are read.

transformers asks its user whether a repository's own code may run, fetches the attention kernel that a configuration
names, joins whatever paths an index of shards has, and applies an adapter that lies beside a model, for which PEFT
imports the module that the adapter's configuration names. None of that happens to what this package loads.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.utils import AUDIO_TOKENIZER_NAME, PROCESSOR_NAME, cached_file

from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json_object

ADAPTER_CONFIG_NAME = "adapter_config.json"

KERNELS = ("attn_implementation", "experts_implementation")
"""Fields by which a configuration may name code on the Hub; each is known by names with underscores before it too."""

TIMM = frozenset(kind for kind, built in MODEL_MAPPING_NAMES.items() if str(built).startswith("Timm"))
"""Model types that transformers leaves to timm, whose arguments may name a pickle to load."""

LABELS = ("id2label", "label2id")
"""Fields of a configuration with names of the user's choice."""

BACKBONES = ("backbone", "backbone_config", "use_timm_backbone", "model_args")
"""Fields by which a model of another type has a part that timm builds."""


def read_config(name: str) -> PreTrainedConfig:
    """Reads the configuration of a folder or Hub repository, without code or kernels that it names.

    Raises:
        UserError: It is of a kind that another package builds, by arguments of the file's choice.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    for field in KERNELS:
        setattr(config, f"_{field}", None)  # in the configurations of its parts as well
    _forget_weights(config)
    check_kind(config)
    return config


def _forget_weights(config: PreTrainedConfig) -> None:
    """Takes away the name of a file in place of the usual ones, which nobody has looked at; of all parts as well."""
    config.transformers_weights = None
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            _forget_weights(part)


def without_kernels(settings: dict[Any, Any]) -> dict[Any, Any]:
    """Returns the fields of a `config.json`, those of its parts included, without the kernels and files it names."""
    dropped = (*KERNELS, "transformers_weights")
    kept = {name: value for name, value in settings.items() if not str(name).lstrip("_").startswith(dropped)}
    return {name: without_kernels(value) if isinstance(value, dict) else value for name, value in kept.items()}


def check_kind(config: PreTrainedConfig) -> None:
    """Refuses models that timm builds, or some part of which it does.

    Raises:
        UserError: It is one.
    """
    parts = [config.to_dict()]
    for part in parts:
        if str(part.get("model_type")) in TIMM or any(part.get(field) for field in BACKBONES):
            raise UserError(f"Models of the type {config.model_type!r} are not supported: another package builds them.")
        parts += [value for name, value in part.items() if isinstance(value, dict) and name not in LABELS]


def check_folder(name: str | Path, *, subfolder: str = "", **where: Any) -> None:
    """Refuses a model's folder or Hub repository whose weights transformers would look for elsewhere.

    Args:
        name: The folder or Hub name.
        subfolder: The folder in it that holds the model.
        **where: See `llava_sp.model.hub.WHERE`.

    Raises:
        UserError: An index names a shard elsewhere, or there is an adapter, which would be applied.
    """
    found = cached_file(
        name,
        ADAPTER_CONFIG_NAME,
        subfolder=subfolder,
        **where,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,  # as transformers looks for it
    )
    if found is not None:
        raise UserError(
            f"{name} holds an adapter ({ADAPTER_CONFIG_NAME}), and a whole model is needed. Merge the adapter into "
            "what it stands on, or take it out of the folder."
        )
    for index in Path(name, subfolder).glob("*.index.json"):  # of a Hub repository, huggingface_hub reads nothing else
        shard_names(index)


def check_processor(name: str | Path, **where: Any) -> None:
    """Refuses a processor with an audio tokenizer, which transformers would load from wherever its file says.

    Args:
        name: Its folder or Hub name.
        **where: `revision`, `subfolder` and the like, as for `from_pretrained`.

    Raises:
        UserError: It has one.
    """
    settings, audio = (
        cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where)
        for file in (PROCESSOR_NAME, AUDIO_TOKENIZER_NAME)
    )
    if audio is not None or (settings is not None and "audio_tokenizer" in read_json_object(settings)):
        raise UserError(f"The processor of {name} has an audio tokenizer, for which there is no use here.")


def shard_names(index: str | Path) -> list[str]:
    """Returns the files that an index of shards names.

    Raises:
        UserError: It is no index, or names a file that does not lie beside it.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index} is no index of shards: it has no 'weight_map'.")
    for shard in weight_map.values():
        named = isinstance(shard, str) and 0 < len(shard) < 256 and shard != ".." and "\0" not in shard
        if not named or Path(shard).name != shard:
            raise UserError(f"{index} names the shard {str(shard)[:80]!r}; a shard must lie beside its index.")
    return sorted(set(weight_map.values()))
