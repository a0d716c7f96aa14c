"""Files from elsewhere run no code and read no other files, and no secret is written down."""

import ast
import builtins
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from jinja2 import TemplateError
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, dynamic_module_utils, pipeline
from transformers.integrations import hub_kernels

import llava_sp
from llava_sp.convert import __main__ as convert
from llava_sp.convert.official import import_official
from llava_sp.convert.ours import read_checkpoint
from llava_sp.eval import __main__ as evaluation
from llava_sp.eval import model_vqa, run_llava
from llava_sp.eval.adapters.common import load_checkpoint
from llava_sp.model import loading, trainable
from llava_sp.serve import __main__ as serve
from llava_sp.train import __main__ as training
from llava_sp.train import command_line
from llava_sp.utils.errors import UserError
from tests.reliability.canary import PICKLES, Canary, as_checkpoint, copied, edit
from tests.tiny import FIXTURES

TINY = {"sfe_channels": 8}
CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoProcessor")
OWN_CODE = {auto: "evil.Evil" for auto in (*CLASSES, "AutoImageProcessor")}
OWN_TOKENIZER = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "EvilTokenizer"}


@pytest.fixture(scope="session")
def originals(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind that is loaded; tests change copies."""
    root = tmp_path_factory.mktemp("originals")
    llm, tower = tiny_parts
    model, processor = loading.build(str(llm), str(tower), overrides=TINY)
    loading.save(model, processor, root / "full", stage="finetune")
    trainable.set_trainable(model, ["projector"])
    loading.save(model, processor, root / "projector", stage="pretrain")
    tuned = trainable.add_lora(model, rank=4, alpha=8, dropout=0.0)
    loading.save(tuned, processor, root / "adapter", stage="finetune_lora")
    official = {
        "official": FIXTURES / "official" / "cropping",
        "official_lora": FIXTURES / "official" / "cropping_lora",
    }
    ours = {kind: root / kind for kind in ("full", "projector", "adapter")}
    return {"llm": llm, "tower": tower, **ours, **official}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    """A canary where everything that could run code would: all is installed, and the user says yes to all."""
    found = Canary(tmp_path / "canary")

    def get_kernel(*_: Any, **__: Any) -> None:
        found.path.touch()
        raise RuntimeError("a kernel was fetched")

    for module in (hub_kernels, transformers.modeling_utils):
        monkeypatch.setattr(module, "is_kernels_available", lambda *_, **__: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", get_kernel)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as for `python -m`
    yield found
    for name in set(sys.modules) - before:
        if name.startswith(("evil", "megatron")):
            del sys.modules[name]


# 1. No code from weights, nor from what lies beside them.

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
    Attack("huge images", "full projector adapter", image_field(size={"shortest_edge": 10**6}), "pixels a side"),
    Attack("other images", "full projector adapter", image_field(crop_size={"height": 7, "width": 7}), "pixels a side"),
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


def loads(kind: str, folder: Path, originals: dict[str, Path]) -> list[Callable[[], object]]:
    """Returns the ways to load a folder of some kind, this package's own one first."""
    if kind == "llm":
        return [lambda: loading.build(str(folder), str(originals["tower"]), overrides=TINY)]
    if kind == "tower":
        return [lambda: loading.build(str(originals["llm"]), str(folder), overrides=TINY)]
    if kind.startswith("official"):
        output = folder.with_name("imported")
        base = str(folder / "base") if kind == "official_lora" else None
        return [lambda: import_official(folder, output, base=base, verify=True)]
    return [
        lambda: loading.load(folder),
        lambda: read_checkpoint(str(folder)),  # what all of `llava_sp.convert` reads ours by
        lambda: AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False),
    ]


@pytest.mark.parametrize(
    ("attack", "kind"),
    [pytest.param(attack, kind, id=f"{kind}-{attack.name}") for attack in ATTACKS for kind in attack.kinds.split()],
)
def test_no_folder_runs_code_or_reads_files_elsewhere(
    attack: Attack, kind: str, originals: dict[str, Path], canary: Canary, tmp_path: Path
) -> None:
    folder = copied(originals[kind], tmp_path / "hostile")
    attack.change(folder, canary)
    first, *others = loads(kind, folder, originals)
    if attack.says:
        with pytest.raises(UserError, match=attack.says) as caught:
            first()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    else:
        first()
    for load in others:  # they read less or, of transformers itself, stop in any way
        with suppress(Exception):
            load()
    assert not canary.sang


def test_a_model_generates_by_its_own_code_alone(originals: dict[str, Path], canary: Canary, tmp_path: Path) -> None:
    folder = copied(originals["full"], tmp_path / "hostile")
    canary.plant(folder)
    for fields in ({"custom_generate": str(folder), "trust_remote_code": True}, {"penalty_alpha": 0.6, "top_k": 4}):
        edit(folder / "generation_config.json", **fields)
        model, _ = loading.load(folder)
        with suppress(ValueError):  # transformers asks for trust_remote_code, of `generate` itself
            model.generate(input_ids=torch.tensor([[1, 5, 6]]), max_new_tokens=2)
    assert not canary.sang


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ (messages | attr('__class__')).__base__ }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
        "{{ messages.append('x') }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% include 'evil.py' %}",
    ],
)
def test_a_template_from_elsewhere_stays_in_its_sandbox(
    template: str, originals: dict[str, Path], canary: Canary, tmp_path: Path
) -> None:
    folder = copied(originals["full"], tmp_path / "hostile")
    canary.plant(tmp_path, "evil.py")
    (folder / "chat_template.jinja").write_text(template)
    _, processor = loading.load(folder)
    assert processor.chat_template == template
    with pytest.raises((TemplateError, OverflowError, TypeError)):
        processor.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert not canary.sang


@pytest.mark.parametrize("answer", ["", None])
def test_transformers_own_classes_run_no_code_unasked(
    answer: str | None, originals: dict[str, Path], canary: Canary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ask their user; here nobody agrees, or nobody is there."""

    def reply(*_: Any) -> str:
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", reply)
    folder = copied(originals["full"], tmp_path / "hostile")
    for change in (own_code, own_tokenizer, own_image_processor, kernel("attn_implementation")):
        change(folder, canary)
        for load in (AutoModelForImageTextToText, AutoProcessor, AutoTokenizer):
            with suppress(ValueError):
                load.from_pretrained(folder)
        with suppress(ValueError):
            pipeline("image-text-to-text", model=str(folder))
    assert not canary.sang


TRAIN = "--use_cpu --max_steps 1 --data_path {files}/data.json --output_dir {files}/run"
COMMANDS: dict[str, tuple[Any, str]] = {
    "eval": (evaluation, "--model-path {full} --device cpu --benchmark tiny --data-root {files} --output {files}/out"),
    "model_vqa": (model_vqa, "--model-path {full} --device cpu --question-file {files}/tiny/questions.jsonl"),
    "its base": (model_vqa, "--model-path {projector} --model-base {llm} --question-file {files}/tiny/questions.jsonl"),
    "run_llava": (run_llava, "--model-path {full} --device cpu --query What?"),
    "server": (serve, "openai --model-path {full} --device cpu"),
    "chat": (serve, "chat --model-path {full} --device cpu"),
    "official": (convert, "official --checkpoint {official} --output {files}/out"),
    "llava": (convert, "llava --checkpoint {official} --output {files}/out"),
    "base": (convert, "official --checkpoint {official_lora} --base {llm} --output {files}/out"),
    "merge-lora": (convert, "merge-lora --checkpoint {adapter} --output {files}/out"),
    "to-official": (convert, "to-official --checkpoint {full} --output {files}/out"),
    "to-hub": (convert, "to-hub --checkpoint {full} --output {files}/out"),
    "parts": (training, f"--model_name_or_path {{llm}} --vision_tower {{tower}} {TRAIN}"),
    "init_from": (training, f"--init_from {{full}} {TRAIN}"),
    "its adapter": (training, f"--init_from {{adapter}} {TRAIN}"),
}
"""Every command that reads a model, and flags that give it one that is hostile."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_a_hostile_model_in_a_line(
    name: str,
    originals: dict[str, Path],
    canary: Canary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders: dict[str, Any] = {**originals, "files": tmp_path}
    for kind in ("llm", "full", "adapter", "official"):
        folders[kind] = copied(originals[kind], tmp_path / kind)
        own_tokenizer(folders[kind], canary)
    own_code(folders["llm"], canary, model_type="evil")
    (tmp_path / "tiny" / "images").mkdir(parents=True)
    (tmp_path / "tiny" / "questions.jsonl").write_text('{"question_id": 1, "text": "What?"}\n')
    (tmp_path / "tiny" / "annotations.jsonl").write_text('{"question_id": 1, "task": "a", "answer": "b"}\n')
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))

    command, flags = COMMANDS[name]
    monkeypatch.setattr("sys.argv", [name, *flags.format(**folders).split()])
    with pytest.raises(SystemExit) as ended:
        command.main()
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert ended.value.code == 2
    assert last.startswith("error: ") and "contains custom code" in last
    assert not canary.sang


def test_other_kits_refuse_it_too(originals: dict[str, Path], canary: Canary, tmp_path: Path) -> None:
    folder = copied(originals["full"], tmp_path / "hostile")
    own_tokenizer(folder, canary)
    with pytest.raises(UserError, match="custom code"):
        load_checkpoint(str(folder), device="cpu")
    assert not canary.sang


def test_a_quantised_model_is_loaded_as_carefully(originals: dict[str, Path], canary: Canary, tmp_path: Path) -> None:
    folder = copied(originals["adapter"], tmp_path / "hostile")
    adapter_of(megatron_config={"a": 1})(folder, canary)
    with pytest.raises(UserError, match="sets megatron_config"):
        loading.load(folder, quantization="4bit")
    assert not canary.sang


SOURCE = Path(llava_sp.__file__).parent
HOMES = {
    "torch.load": {"convert/tensors.py", "train/pickles.py"},
    "subprocess": {"playground/quickstart.py", "utils/git.py", "utils/ranks.py"},
    "socket": {"utils/lock.py", "utils/ranks.py"},
    "importlib.import_module": {"__init__.py", "bench/__main__.py", "serve/__main__.py"},
    "urllib.request": {"eval/benchmarks/judge.py"},
    "yaml.load": {"train/command_line.py"},  # by a loader of its own, a SafeLoader
}
"""What a program can do harm with, and the only files that use it; here they name modules and commands themselves."""

NOWHERE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "torch.hub", "torch.jit"),
    *("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code", "telnetlib", "xmlrpc"),
    *("yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader", "yaml.UnsafeLoader"),
    *("http.server", "socketserver", "requests", "httpx"),
}


def used_in(tree: ast.AST) -> Iterator[str]:
    """Yields the dotted names that a module imports or uses, by the names they have where they come from."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names}
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, dot, rest = ast.unparse(node).partition(".")
            if first in known or hasattr(builtins, first):
                yield known.get(first, first) + dot + rest


def test_what_can_do_harm_has_one_home() -> None:
    for file in sorted(SOURCE.rglob("*.py")):
        name = file.relative_to(SOURCE).as_posix()
        used = set(used_in(ast.parse(file.read_text())))
        for harm in (*HOMES, *NOWHERE):
            found = any(use == harm or use.startswith(f"{harm}.") for use in used)
            assert not found or name in HOMES.get(harm, ()), f"{name} uses {harm}"


def test_every_call_that_can_run_code_says_that_it_may_not() -> None:
    for file in sorted(SOURCE.rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            where = f"{file.relative_to(SOURCE)}, line {call.lineno}"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
            said = ast.unparse(call.func)
            assert given.get("trust_remote_code", "False") == "False", where
            assert given.get("shell", "False") == "False", where
            assert given.get("allow_pickle", "False") == "False", where
            if said == "yaml.load":
                assert issubclass(command_line._Loader, yaml.SafeLoader) and "_Loader" in ast.unparse(call), where
            if said == "torch.load":
                assert given.get("weights_only") == "True", where
            if said.lower().startswith("auto") and said.endswith((".from_pretrained", ".from_config")):
                passed = any(keyword.arg is None for keyword in call.keywords)  # ** of a dictionary that says so
                assert given.get("trust_remote_code") == "False" or passed, where
