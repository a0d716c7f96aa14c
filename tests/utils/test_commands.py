"""What command lines share."""

import pytest

from llava_sp.bench import __main__ as bench
from llava_sp.serve import __main__ as serve
from llava_sp.train.launch import read_launcher_flags
from llava_sp.utils.commands import summary


@pytest.mark.parametrize(
    ("doc", "told"),
    [
        ("`python -m llava_sp.serve chat`: talks with a model.\n\nMore.", "Talks with a model."),
        ("Measures `load`: time.", "Measures load: time."),
        ("`a`: as `b` does.", "As b does."),
        (None, ""),
    ],
)
def test_help_is_the_first_line_of_a_docstring(doc: str | None, told: str) -> None:
    assert summary(doc) == told


@pytest.mark.parametrize(
    ("package", "usage"),
    [
        (serve, "python -m llava_sp.serve chat|openai [flags]"),
        (bench, "python -m llava_sp.bench projector|dataset|generate|reliability [flags]"),
    ],
)
def test_a_package_of_commands_names_them(
    package: object, usage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["package", "--help"])
    package.main()
    assert f"usage: {usage}\n" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["package", "other"])
    with pytest.raises(SystemExit) as ended:
        package.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: Name a command: {usage}.\n"


def test_commands_get_the_remaining_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "dataset", "--records", "0"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "--records must be at least 1" in capsys.readouterr().err


def test_the_launcher_takes_both_spellings() -> None:
    for flag in ("--nproc_per_node=2", "--nproc-per-node=2"):
        found, rest = read_launcher_flags(["a.yaml", flag, "--lora_r", "8"])
        assert (found.nproc_per_node, rest) == (2, ["a.yaml", "--lora_r", "8"])
