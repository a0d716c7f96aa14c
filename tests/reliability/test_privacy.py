"""No command listens, and neither secrets nor this machine's paths are in what is written or published."""

import dataclasses
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed
from PIL import Image

from llava_sp.convert import __main__ as convert
from llava_sp.convert.hub import to_hub
from llava_sp.eval import __main__ as evaluation
from llava_sp.eval import model_vqa, run_llava
from llava_sp.eval.report import __main__ as report
from llava_sp.model import loading, trainable
from llava_sp.train.arguments import TrainArguments
from llava_sp.train.run import train
from tests.reliability.runs import wait_until
from tests.reliability.sockets import Watch, listening

SECRET = "n0b0dy-may-read-this"  # noqa: S105
VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "OPENAI_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "PASSWORD",
)


@pytest.fixture(scope="module")
def files(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models of each kind, and with data to train and to be asked on."""
    root = tmp_path_factory.mktemp("files")
    model, processor = loading.build(*map(str, tiny_parts), overrides={"sfe_channels": 8})
    loading.save(model, processor, root / "full", stage="finetune")
    trainable.set_trainable(model, ["projector"])
    tuned = trainable.add_lora(model, rank=4, alpha=8, dropout=0.0)
    loading.save(tuned, processor, root / "adapter", stage="finetune_lora")
    (root / "tiny" / "images").mkdir(parents=True)
    Image.new("RGB", (30, 20), (9, 90, 200)).save(root / "tiny" / "images" / "a.png")
    question = {"question_id": 1, "text": "What?", "image": "a.png"}
    (root / "tiny" / "questions.jsonl").write_text(json.dumps(question) + "\n")
    (root / "tiny" / "annotations.jsonl").write_text('{"question_id": 1, "task": "a", "answer": "b"}\n')
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    records = [{"id": str(number), "image": "a.png", "conversations": turns} for number in range(4)]
    (root / "data.json").write_text(json.dumps(records))
    return root


# 4. No listening sockets.

COMMANDS: dict[str, tuple[Any, str]] = {
    "eval": (evaluation, "--benchmark tiny --model-path {files}/full --device cpu --data-root {files} --output {out}"),
    "model_vqa": (
        model_vqa,
        "--model-path {files}/adapter --device cpu --question-file {files}/tiny/questions.jsonl --max_new_tokens 4 "
        "--image-folder {files}/tiny/images --answers-file {out}/answers.jsonl",
    ),
    "run_llava": (run_llava, "--model-path {files}/full --device cpu --query What? --max_new_tokens 4"),
    "merge-lora": (convert, "merge-lora --checkpoint {files}/adapter --output {out}/merged --verify"),
    "to-hub": (convert, "to-hub --checkpoint {files}/full --output {out}/hub"),
}


@pytest.fixture
def call(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs a command in this process."""

    def run(name: str) -> None:
        command, flags = COMMANDS[name]
        monkeypatch.setattr("sys.argv", [name, *flags.format(files=files, out=tmp_path).split()])
        try:
            command.main()
        except SystemExit as ended:
            assert ended.code == 0

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_listens(name: str, call: Callable[[str], None]) -> None:
    with Watch() as watch:
        call(name)
    assert not watch.seen


def test_loading_does_not_listen(files: Path) -> None:
    with Watch() as watch:
        loading.load(files / "adapter", merge=False)
    assert not watch.seen


def test_a_socket_would_be_seen() -> None:
    """Python's, and one that C++ code opens."""
    with Watch() as watch, socket.create_server(("127.0.0.1", 0)) as opened:
        assert f"0100007F:{opened.getsockname()[1]:04X}" in listening()
    assert str(("127.0.0.1", 0)) in watch.seen  # as Python tells it
    with Watch() as watch:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        assert wait_until(lambda: any(seen.endswith(f":{store.port:04X}") for seen in watch.seen.copy()), 60)


# 5. No secrets.


def test_no_secret_is_written(
    files: Path,
    tiny_parts: tuple[Path, Path],
    call: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    secret = [
        field.name for field in dataclasses.fields(TrainArguments) if field.init and field.name.endswith("_token")
    ]
    assert secret, "no argument takes a secret any more"
    llm, tower = map(str, tiny_parts)
    flags = f"""
        --model_name_or_path {llm} --vision_tower {tower} --sfe_channels 8 --tune_mm_mlp_adapter --version plain
        --data_path {files}/data.json --image_folder {files}/tiny/images --output_dir {tmp_path}/run --use_cpu
        --max_steps 2 --save_steps 1 --logging_steps 1 --report_to tensorboard --learning_rate 0.0123
        {" ".join(f"--{name} {SECRET}-{name}" for name in secret)}
    """
    train(flags.split(), ranks=1)
    to_hub(str(tmp_path / "run"), str(tmp_path / "hub"))
    call("eval")
    call("model_vqa")
    monkeypatch.setattr("sys.argv", ["report", "--results", str(tmp_path), "--output", str(tmp_path / "report")])
    report.main()

    printed = capfd.readouterr()
    written = {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert any(b"0.0123" in content for name, content in written.items() if "tfevents" in name)
    assert any(b"0.0123" in content for name, content in written.items() if name.endswith("llava_sp.json"))
    holding = [name for name, content in written.items() if SECRET.encode() in content]
    assert not holding
    assert SECRET not in printed.out + printed.err

    here = (str(tmp_path), str(files), llm, str(Path.home()) + "/", str(Path.cwd()))
    for name, content in written.items():
        if name.startswith(str(tmp_path / "hub")):
            assert not any(path.encode() in content for path in here), name
