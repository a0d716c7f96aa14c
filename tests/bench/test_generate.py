"""The generation benchmark runs, compares answers, and computes what it prints."""

import re

import pytest

from llava_sp.bench import generate
from llava_sp.utils.errors import UserError

SMALL = ["--questions", "3", "--per-image", "2", "--batch-size", "2", "--device", "cpu", "--repeats", "1"]


def test_every_length_gets_a_line_whose_ratio_is_that_of_its_rates(capsys):
    generate.main([*SMALL, "--new-tokens", "1", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["1", "3"]  # nothing about answers that differ
    for line in lines[2:]:
        single, batched, ratio = map(float, re.findall(r"\d+\.\d+", line))
        assert ratio == pytest.approx(batched / single, rel=0.1, abs=0.1)


def test_answers_that_differ_are_told(capsys, monkeypatch):
    answer = generate.Bench.answer
    monkeypatch.setattr(
        generate.Bench, "answer", lambda *args: (1.0, {key: (args[1], text) for key, text in answer(*args)[1].items()})
    )
    generate.main([*SMALL, "--new-tokens", "1"])
    assert "3 of 3 answers differ" in capsys.readouterr().out


def test_answers_have_the_length_that_is_asked_for():
    steps = []
    bench = generate.Bench(generate.parse(SMALL))
    bench.model.register_forward_hook(lambda *_: steps.append(1))
    bench.answer(3, 5)
    assert len(steps) == 1 + 5  # what two questions share, then the tokens


def test_nothing_to_do_is_refused():
    with pytest.raises(UserError, match="--new-tokens"):
        generate.main(["--new-tokens", "0"])
