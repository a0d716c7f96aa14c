"""Whatever stands in a YAML file, on the command line or in a configuration: settings to work with, or one sentence."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, LlamaConfig

from llava_sp.model.card import Card
from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.spatial.projector import LlavaSPProjector
from llava_sp.train.command_line import _Parser, build_arguments, collect, complete
from llava_sp.utils.errors import UserError
from tests.reliability.bombs import watch_memory
from tests.reliability.strategies import ODD, fuzz

ACTIONS = {option: action for action in _Parser()._actions for option in action.option_strings if action.dest != "help"}
OLD = ["--evaluation_strategy", "--no_cuda", "--warmup_ratio", "--save_safetensors", "--lora_weight_path"]
FLAGS = [*ACTIONS, *OLD]

words = st.sampled_from(
    [
        *["", "true", "False", "yes", "no", "none", "None", "null", "auto", "0", "1", "-1", "2", "8", "0.5", "1e-3"],
        *["-1e-3", "nan", "inf", "-inf", "1e999", "9" * 30, "9" * 5000, "-" + "9" * 4300, "1_000", "0x10", "٣"],
        *["[1, 2]", "[]", "{}", '{"a": 1}', '{"use_reentrant": true}', "[[", "[" * 3000, "(1, 2)", "[(336, 672)]"],
        *["[(1e999, 1)]", "-" * 30_000 + "1", "steps", "epoch", "cosine", "v1", "plain", "v9", "pad", "anyres"],
        *["full_shard", "a,b", "-", "--", "--x", "--x=1", "=", "a.json", ".", "/", "/dev/null", "a\0b", *ODD],
    ]
)
values = st.one_of(words, st.text(max_size=8), st.integers().map(str), st.floats().map(str))
numbers = st.one_of(st.integers(0, 100), st.sampled_from([-1, 2**31, 2**63, 10**30])).map(str)


def fitting(flag: str) -> st.SearchStrategy[str]:
    """Values of the type that a flag takes."""
    action = ACTIONS.get(flag)
    if action is None:
        return values
    if action.choices:
        return st.sampled_from([str(choice) for choice in action.choices])
    kind = getattr(action.type, "__name__", "")
    if kind == "string_to_bool":
        return st.sampled_from(["True", "False"])
    if kind == "int":
        return numbers
    return st.one_of(numbers, st.floats().map(str), st.sampled_from(["0.1", "1e-4"])) if kind == "float" else words


pairs = st.sampled_from(FLAGS).flatmap(
    lambda flag: st.tuples(st.just(flag), st.one_of(fitting(flag), fitting(flag), fitting(flag), values))
)


@pytest.fixture(autouse=True)
def quiet_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own."""
    monkeypatch.chdir(tmp_path)


def use(argv: list[str], ranks: int) -> None:
    """Goes all the way from words to settings, as a run does before it loads anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())  # transformers leaves word to accelerate there
        try:
            given = collect(argv)
            plan = complete(given, ranks=ranks)
            run = build_arguments(given, plan)
        except UserError as error:
            assert str(error)
            return
    assert run.batch_plan.global_batch >= 1
    assert run.training.gradient_accumulation_steps == run.batch_plan.accumulation


flags = st.lists(
    st.one_of(
        pairs.map(list),
        pairs.map(list),
        pairs.map(lambda pair: ["=".join(pair)]),
        st.builds(lambda flag, some: [flag, *some], st.sampled_from(FLAGS), st.lists(values, max_size=2)),
    ),
    max_size=4,
)


@fuzz(800, flags=flags, ranks=st.sampled_from([1, 3, 8]))
def test_flags_make_settings_or_one_sentence(flags: list[list[str]], ranks: int) -> None:
    use(["--output_dir", "out", "--use_cpu", *(word for flag in flags for word in flag)], ranks)


scalars = st.one_of(
    values.filter(lambda word: len(word) < 400),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.binary(max_size=4),
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3), max_leaves=5
)


def plainly(word: str) -> Any:
    """What a word means in YAML."""
    try:
        return yaml.safe_load(word)
    except Exception:
        return word


mappings = st.one_of(
    st.lists(pairs, max_size=4).map(lambda some: {flag[2:]: plainly(word) for flag, word in some}),
    st.dictionaries(st.one_of(st.sampled_from([flag[2:] for flag in FLAGS]), scalars), trees, max_size=3),
)
PIECES = [
    *["&a ", "*a", "!!python/object:os.system ", "!!python/name:os ", "!!int ", "!!float ", "!!bool ", "!!binary "],
    *["!!timestamp ", "!!set ", "!!omap ", "!!null ", "! ", "!x ", "---\n", "...\n", "%YAML 9.9\n", "<<: ", "? ", ": "],
    *[
        "\t",
        "  ",
        "\n",
        "#",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ",",
        '"',
        "'",
        "|\n",
        ">\n",
        "=",
        "~",
        "@",
        "`",
        "%",
        "0b",
        "0o8",
    ],
    *["1:60:70", "2001-13-45", "2001-01-01 25:00:00", "1e5", "." * 3, ".inf", ".nan", "0x", "9" * 5000, "-", "yes"],
    *["[" * 2000, "{a: " * 900, "- " * 2000, "\\x", '"\\ud800"', "\ufeff", "\0", "\x85", "\u2028", "help: 1\n", "é"],
    "a: &a [1,2,3,4,5,6,7,8,9]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
    "g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\nseed: [*h,*h,*h,*h,*h,*h,*h,*h,*h]\n",
    "accelerator_config: &a {x: *a}\n",
    "sfe_sides: &a [*a]\n",
    "output_dir: &a b\nrun_name: *a\n",
]


@st.composite
def yamls(draw: st.DrawFn) -> bytes:
    """A YAML file, often with something put into it."""
    text = yaml.safe_dump(draw(mappings), allow_unicode=draw(st.booleans()))
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.one_of(st.sampled_from(PIECES), st.text(max_size=3))) + text[at:]
    return text.encode(draw(st.sampled_from(["utf-8"] * 9 + ["utf-16", "latin-1"])), errors="replace")


@fuzz(700, content=yamls(), ranks=st.sampled_from([1, 8]))
def test_a_yaml_file_makes_settings_or_one_sentence(content: bytes, ranks: int) -> None:
    Path("a.yaml").write_bytes(content)
    growth = watch_memory()
    use(["a.yaml", "--output_dir", "out", "--use_cpu"], ranks)
    assert growth() < 200  # MiB


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.sampled_from(["", "v1", "plain", "x", "\ud83d"])
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def objects(*names: str) -> st.SearchStrategy[Any]:
    """JSON objects that have some of these names, or something else."""
    return st.one_of(
        st.fixed_dictionaries({}, optional=dict.fromkeys(names, json_values)),
        st.fixed_dictionaries({}, optional=dict.fromkeys(names, json_values)),
        json_values,
    )


CARD = asdict(Card("full", {}, "pretrain", "plain", {}))
FILES = {
    "config.json": objects("vision_feature_layer", "model_type"),
    "adapter_config.json": objects("r", "lora_alpha", "lora_dropout", "peft_type"),
    "llava_sp.json": st.one_of(
        objects("conversation_template", "details", "parts", "kind"),
        objects("arguments").map(lambda told: {"details": told}),
    ).map(lambda found: {**CARD, **found} if isinstance(found, dict) else found),
    "zero.json": objects("zero_optimization", "train_batch_size"),
}


@fuzz(400, files=st.fixed_dictionaries({}, optional=FILES), lora=st.booleans())
def test_a_checkpoint_to_start_from_makes_settings_or_one_sentence(files: dict[str, Any], lora: bool) -> None:
    for name in FILES:
        Path(name).unlink(missing_ok=True)
    for name, content in files.items():
        Path(name).write_text(json.dumps(content))
    deepspeed = ["--deepspeed", "zero.json"] if "zero.json" in files else []
    stage = ["--lora_enable"] if lora else []
    use(["--output_dir", "out", "--use_cpu", "--bits", "16", "--init_from", ".", *deepspeed, *stage], 1)


TOWER = CLIPVisionConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=48, patch_size=4
).to_dict()
LLM = LlamaConfig(vocab_size=100, hidden_size=64, num_hidden_layers=1, num_attention_heads=4).to_dict()
sides = st.one_of(st.integers(-1, 14), st.integers(-1, 14), st.sampled_from([24, 48, 2**31, 10**12, 10**400]))
anything = st.one_of(st.none(), st.booleans(), sides, st.floats(), st.text(max_size=3), st.lists(sides, max_size=3))
choices = {
    "sfe_maps": st.sampled_from(["cropping", "pooling", "none"]),
    "sfe_operator": st.sampled_from(["conv", "transformer"]),
    "dfi_fusion": st.sampled_from(["concat", "sum"]),
    "patch_merge_type": st.sampled_from(["flat", "spatial", "spatial_unpad"]),
    "spatial_bias": st.booleans(),
    "sfe_transformer_dropout": st.floats(),
    "image_grid_pinpoints": st.one_of(
        st.none(), st.lists(st.lists(st.sampled_from([0, 48, 96, -48, 50, 48 * 10**9]), max_size=3), max_size=3)
    ),
    "vision_feature_select_strategy": st.sampled_from(["default", "full"]),
    "vision_feature_layer": st.one_of(st.integers(-4, 4), st.lists(st.integers(-4, 4), max_size=2)),
    **dict.fromkeys(["sfe_sides", "dfi_kernels"], st.one_of(st.none(), st.lists(sides, max_size=4))),
    **dict.fromkeys(["num_spatial_tokens", "sfe_channels", "sfe_transformer_layers", "sfe_transformer_heads"], sides),
    **dict.fromkeys(["dfi_stride", "llm_vocab_size", "image_token_index"], sides),
}
wholly = st.fixed_dictionaries({}, optional=choices)
somehow = st.dictionaries(st.sampled_from(list(choices)), anything, max_size=2)
parts = st.dictionaries(
    st.sampled_from(["image_size", "patch_size", "hidden_size", "model_type", "num_channels", "vocab_size"]),
    st.one_of(anything, st.sampled_from(["clip_vision_model", "llama", "timm_wrapper"])),
    max_size=1,
)


@fuzz(600, some=wholly, others=st.one_of(st.just({}), somehow), tower=st.one_of(st.just({}), parts), llm=parts)
def test_a_configuration_is_whole_or_refused(
    some: dict[str, Any], others: dict[str, Any], tower: dict[str, Any], llm: dict[str, Any]
) -> None:
    text = {**LLM, **llm} if tower else LLM
    try:
        config = LlavaSPConfig(**{**some, **others}, vision_config={**TOWER, **tower}, text_config=text)
    except UserError as error:
        assert str(error)
        return
    side, sides = config.grid_side, config.sfe_sides
    assert len(sides) == config.num_spatial_tokens == config.image_seq_length - side**2
    assert all(1 <= side <= config.grid_side for side in [*sides, *config.dfi_kernels])
    assert LlavaSPConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    if tower:  # what else is wrong with its numbers, transformers tells when it builds it
        return
    with torch.device("meta"):
        projector = LlavaSPProjector(config)
        tokens = projector(torch.empty(2, side**2, config.feature_channels))
    closes_rows = config.patch_merge_type == "spatial_unpad"
    assert tokens.shape == (2, config.image_seq_length + closes_rows, config.text_config.hidden_size)
    if config.tile_layout is not None:
        assert config.tile_layout.count_tokens(30, 50) > 0
