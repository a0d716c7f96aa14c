"""Files from elsewhere run no code and read no other files, and no secret is written down."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from jinja2 import TemplateError
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, dynamic_module_utils, pipeline
from transformers.integrations import hub_kernels

from llava_sp.convert import __main__ as convert
from llava_sp.convert.official import import_official
from llava_sp.convert.ours import read_checkpoint
from llava_sp.eval import __main__ as evaluation
from llava_sp.eval import model_vqa, run_llava
from llava_sp.eval.adapters.common import load_checkpoint
from llava_sp.model import loading, trainable
from llava_sp.serve import __main__ as serve
from llava_sp.train import __main__ as training
from llava_sp.utils.errors import UserError
from tests.reliability.attacks import (
    ATTACKS,
    Attack,
    adapter_of,
    kernel,
    own_code,
    own_image_processor,
    own_tokenizer,
)
from tests.reliability.canary import Canary, copied, edit
from tests.tiny import FIXTURES

TINY = {"sfe_channels": 8}


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
