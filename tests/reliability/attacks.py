"""Changes to a model's folder that would have it run code, or read files elsewhere."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.reliability.canary import PICKLES, Canary, as_checkpoint, copied, edit

CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoProcessor")
OWN_CODE = {auto: "evil.Evil" for auto in (*CLASSES, "AutoImageProcessor")}
OWN_TOKENIZER = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "EvilTokenizer"}

Change = Callable[[Path, Canary], object]


@dataclass(frozen=True)
class Attack:
    """A change to a folder that would have it run code, or read files elsewhere.

    Attributes:
        name: What it is called.
        kinds: The kinds of folders that it is tried on.
        change: Makes it.
        says: What the error says; "" where the folder is loaded all the same, without harm.
    """

    name: str
    kinds: str
    change: Change
    says: str = ""


def own_code(folder: Path, canary: Canary, **fields: Any) -> None:
    canary.plant(folder)
    edit(folder / "config.json", auto_map=OWN_CODE, **fields)
    for file in ("processor_config.json", "preprocessor_config.json"):
        if (folder / file).exists():
            edit(folder / file, auto_map=OWN_CODE)


def own_tokenizer(folder: Path, canary: Canary) -> None:
    canary.plant(folder)
    edit(folder / "tokenizer_config.json", **OWN_TOKENIZER)


def own_image_processor(folder: Path, canary: Canary) -> None:
    canary.plant(folder)
    fields = {"auto_map": {"AutoImageProcessor": "evil.Evil"}, "image_processor_type": "EvilImageProcessor"}
    edit(folder / "processor_config.json", "image_processor", **fields)


def audio_tokenizer(folder: Path, canary: Canary) -> None:
    own_code(copied(folder, folder.with_name("other")), canary, model_type="evil")
    named = {"audio_tokenizer_class": "AutoConfig", "audio_tokenizer_name_or_path": str(folder.with_name("other"))}
    edit(folder / "processor_config.json", audio_tokenizer=named)


def audio_tokenizer_file(folder: Path, canary: Canary) -> None:
    audio_tokenizer(folder, canary)
    content = json.loads((folder / "processor_config.json").read_text())
    (folder / "audio_tokenizer_config.json").write_text(json.dumps(content.pop("audio_tokenizer")))
    (folder / "processor_config.json").write_text(json.dumps(content))


def kernel(field: str, name: str = "evil/kernel") -> Change:
    def change(folder: Path, canary: Canary) -> None:
        edit(folder / "config.json", **{field: name})
        for part in ("text_config", "vision_config"):
            if part in json.loads((folder / "config.json").read_text()):
                edit(folder / "config.json", part, **{field: name})

    return change


def own_generation(folder: Path, canary: Canary) -> None:
    canary.plant(folder)
    edit(folder / "generation_config.json", custom_generate=str(folder), trust_remote_code=True)


def image_field(**fields: Any) -> Change:
    return lambda folder, canary: edit(folder / "processor_config.json", "image_processor", **fields)


def other_weights(folder: Path, canary: Canary) -> None:
    """Names an index of shards elsewhere as the weights."""
    away = shutil.copy(folder / "model.safetensors", folder.with_name("weights.safetensors"))
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(away), str(away))}
    (folder / "other").mkdir()
    (folder / "other" / "model.safetensors.index.json").write_text(json.dumps(index))
    edit(folder / "config.json", transformers_weights="other/model.safetensors.index.json")


def weights_of_part(folder: Path, canary: Canary) -> None:
    """Names them for a part, which a tower becomes of a whole CLIP."""
    other_weights(folder, canary)
    config = json.loads((folder / "config.json").read_text())
    named = config.pop("transformers_weights")
    if config["model_type"] == "clip_vision_model":
        config = {"model_type": "clip", "vision_config": config}
    for part in ("vision_config", "text_config"):
        config.setdefault(part, {})["transformers_weights"] = named
    (folder / "config.json").write_text(json.dumps(config))


def of_timm(kind: str, *path: str) -> Change:
    """Has timm build a model, or the part of it that a model type and a path of keys lead to."""

    def change(folder: Path, canary: Canary) -> None:
        as_checkpoint(canary, folder / "evil.bin")
        config = json.loads((folder / "config.json").read_text())
        part = config.get("vision_config", config)
        if path:
            part["model_type"] = path[0]
        for key in path[1:]:
            part = part.setdefault(key, {})
        part |= {"model_type": kind, "architecture": "resnet18", "model_args": {"checkpoint_path": "evil.bin"}}
        (folder / "config.json").write_text(json.dumps(config))

    return change


def with_backbone(folder: Path, canary: Canary) -> None:
    edit(folder / "config.json", model_type="detr", use_timm_backbone=True, backbone="resnet50")


def adapter_of(**fields: Any) -> Change:
    """Gives a folder an adapter's configuration with some fields set; its weights stay as they are, if it has any."""

    def change(folder: Path, canary: Canary) -> None:
        canary.plant(folder.parent, "evil.py", "megatron/core.py")  # where Python finds modules
        usual = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        edit(folder / "adapter_config.json", **({} if (folder / "adapter_config.json").exists() else usual), **fields)

    return change


def rank_of_nothing(folder: Path, canary: Canary) -> None:
    edit(folder / "adapter_config.json", r=10**6)
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), "x.lora_A.weight": torch.empty(10**6, 0)}, file, {"format": "pt"})


def pickled(write: Callable[[Canary, Path], None], weights: str, file: str) -> Change:
    """Puts a pickle where the weights were."""

    def change(folder: Path, canary: Canary) -> None:
        (folder / weights).unlink()
        write(canary, folder / file)

    return change


def shards(named: Any, index: str = "model.safetensors.index.json") -> Change:
    """Puts an index in place of the weights; its shard is as named, and `WEIGHTS` is where they went."""

    def change(folder: Path, canary: Canary) -> None:
        keys = list(load_file(folder / "model.safetensors"))
        away = (folder / "model.safetensors").rename(folder.with_name("weights.safetensors"))
        shard = str(away) if named == "WEIGHTS" else named
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(keys, shard)}))

    return change


def setting(file: str, **fields: Any) -> Change:
    return lambda folder, canary: edit(folder / file, **fields)


def content(file: str, text: str) -> Change:
    return lambda folder, canary: (folder / file).write_text(text)


MODELS = "llm tower full"
ATTACKS = [
    Attack("code of its own", MODELS, own_code),
    Attack("a type of its own", "llm tower", lambda *at: own_code(*at, model_type="evil"), "custom code|model type"),
    Attack("a tokenizer of its own", "llm full adapter official", own_tokenizer, "custom code"),
    Attack("an image processor of its own", "full", own_image_processor, "custom code"),
    Attack("an audio tokenizer", "full projector", audio_tokenizer, "audio tokenizer"),
    Attack("an audio tokenizer's file", "full", audio_tokenizer_file, "audio tokenizer"),
    *(
        Attack(field, f"{MODELS} adapter official", kernel(field))
        for field in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
    ),
    Attack("an attention kernel by its short name", MODELS, kernel("attn_implementation", "flash_attention_2")),
    Attack("an experts' kernel", "llm full", kernel("experts_implementation", "evil/kernel")),
    Attack("generation of its own", "full", own_generation),
    Attack("a timm model", "tower full", of_timm("timm_wrapper"), "timm"),
    Attack("a timm model by another name", "tower full", of_timm("gemma3n_vision"), "not supported|timm"),
    *(
        Attack(f"a timm part of {path[0]}", "llm tower full", of_timm(kind, *path), "not supported")
        for kind, *path in (
            ("timm_wrapper", "llava", "vision_config"),
            ("gemma3n_vision", "gemma3n", "vision_config"),
            ("timm_wrapper", "qwen2_vl", "text_config", "vision_config"),
        )
    ),
    Attack("a timm backbone", "tower", with_backbone, "not supported|timm"),
    Attack(
        "quantised by a package",
        "llm full",
        setting("config.json", quantization_config={"quant_method": "awq"}),
        "awq|AWQ",
    ),
    Attack(
        "a class for its numbers",
        "llm full",
        setting("config.json", quantization_config={"quant_method": "torchao"}),
        "torchao",
    ),
    Attack("a function for a type", "full", setting("config.json", dtype="save"), "Cannot load"),
    Attack("weights by another name", MODELS, other_weights),
    Attack("weights of a part by another name", "tower full", weights_of_part),
    Attack("huge images", "full projector adapter", image_field(size={"shortest_edge": 10**6}), "does not make images"),
    Attack("other images", "full projector adapter", image_field(crop_size={"height": 7, "width": 7}), "does not make"),
    *(
        Attack(f"images by {fields}", "full", image_field(**fields), "does not make images|Cannot load")
        for fields in (
            {"do_pad": True, "pad_size": {"height": 3000, "width": 3000}},
            {"crop_size": {"height": 48, "width": 192}},
            {"do_resize": False, "do_center_crop": False},
            {"size": {"shortest_edge": 192}, "do_center_crop": False, "image_aspect_ratio": "square"},
            {"size": None},
            {"crop_size": None},
        )
    ),
    Attack(
        "tiles beyond all memory",
        "full projector adapter",
        image_field(image_aspect_ratio="anyres", image_grid_pinpoints=[[52 * 10**4, 52 * 10**4]]),
        "other grids",
    ),
    # PEFT
    Attack("Megatron", "adapter official_lora", adapter_of(megatron_config={"a": 1}), "sets megatron_config"),
    Attack(
        "a module for Megatron",
        "adapter official_lora",
        adapter_of(megatron_config={"a": 1}, megatron_core="evil"),
        "sets megatron_config, megatron_core",
    ),
    Attack("Megatron beside a model", MODELS, adapter_of(megatron_config={"a": 1}), "holds an adapter"),
    Attack("an adapter beside a model", MODELS, adapter_of(), "holds an adapter"),
    Attack(
        "a library to import",
        "adapter",
        adapter_of(auto_mapping={"base_model_class": "Evil", "parent_library": "evil"}),
    ),
    Attack("another kind of adapter", "adapter", adapter_of(peft_type="XLORA", adapters={"a": "b"}), "only LORA"),
    Attack("no kind of adapter", "adapter", adapter_of(peft_type="EVIL"), "Cannot load"),
    Attack(
        "a cache to unpickle",
        "adapter",
        adapter_of(init_lora_weights="corda", corda_config={"cache_file": "evil.bin"}),
        "sets corda_config, init_lora_weights",
    ),
    Attack("a base that is changed", "adapter", adapter_of(init_lora_weights="pissa"), "sets init_lora_weights"),
    Attack("a rank beyond all memory", "adapter", adapter_of(r=10**9), "has r 1000000000, and"),
    Attack("a rank that a tensor of nothing has", "adapter", rank_of_nothing, "has r 1000000, and"),
    Attack("a pattern that takes years", "adapter", adapter_of(target_modules="(a+)+(a+)+$"), "to a pattern"),
    Attack("ranks by patterns", "adapter", adapter_of(rank_pattern={"(a+)+$": 8}), "sets rank_pattern"),
    Attack("an adapter's list", "adapter", content("adapter_config.json", "[]"), "Cannot load"),
    Attack("an adapter's depth", "adapter", content("adapter_config.json", "[" * 10**5), "Cannot load"),
    # Pickles
    *(
        Attack(f"{kind} {write.__name__}", kind, pickled(write, weights, file), says)
        for kind, weights, file, says in (
            ("llm", "model.safetensors", "pytorch_model.bin", "Cannot load the LLM"),
            ("tower", "model.safetensors", "pytorch_model.bin", "Cannot load the vision tower"),
            ("full", "model.safetensors", "pytorch_model.bin", r"no .*model\.safetensors"),
            ("adapter", "adapter_model.safetensors", "adapter_model.bin", r"adapter_model\.safetensors"),
            ("projector", "projector.safetensors", "projector.safetensors", "damaged"),
            ("official", "model.safetensors", "pytorch_model.bin", "none of it was run"),
            ("official_lora", "adapter_model.bin", "adapter_model.bin", "none of it was run"),
            ("official_lora", "non_lora_trainables.bin", "non_lora_trainables.bin", "none of it was run"),
        )
        for write in PICKLES
    ),
    Attack(
        "a projector's pickle",
        "official",
        pickled(as_checkpoint, "model.safetensors", "mm_projector.bin"),
        "none of it was run",
    ),
    # Other files
    Attack("a shard above", f"{MODELS} official", shards("../weights.safetensors"), "must lie beside its index"),
    Attack("a shard elsewhere", f"{MODELS} official", shards("WEIGHTS"), "must lie beside its index"),
    Attack(
        "pickled shards above", "llm tower official", shards("../x", "pytorch_model.bin.index.json"), "beside its index"
    ),
    *(
        Attack(f"the shard {str(shard)[:10]!r}", "full official", shards(shard), "must lie beside its index")
        for shard in ("..", ".", "", "a\0b", "a/b.safetensors", "https://host/x", "x" * 300, 3, None, ["a"])
    ),
    *(
        Attack(
            f"the index {text[:20]}",
            "full official",
            lambda folder, canary, text=text: (
                (folder / "model.safetensors").unlink(),
                (folder / "model.safetensors.index.json").write_text(text),
            ),
            "index",
        )
        for text in ("{}", "[]", "3", '{"weight_map": [1]}', '{"weight_map": {"a": {}}}', "[" * 10**5, '{"weight_map":')
    ),
    Attack("weights above", MODELS, setting("config.json", transformers_weights="../weights.safetensors")),
    # The card
    *(
        Attack(f"the card's parts {str(parts)[:20]}", "projector", setting("llava_sp.json", parts=parts), says)
        for parts, says in (
            (3, "no card"),
            ({}, "no card"),
            ({"llm": 3, "vision_tower": None}, "no card"),
            ({"llm": "https://host/x", "vision_tower": "y"}, "Cannot load"),
            ({"llm": "a\0b", "vision_tower": "y"}, "Cannot load"),
            ({"model": "../" * 9 + "etc"}, "checkpoint"),
            ({"llm": "x" * 10**5, "vision_tower": "y"}, "Cannot load"),
        )
    ),
    Attack("the card's kind", "full", setting("llava_sp.json", kind="evil"), "no card"),
]
