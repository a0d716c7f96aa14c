"""The projector's benchmark runs, and would notice if the two forms disagreed."""

import pytest
import torch

from llava_sp.bench import projector
from llava_sp.utils.errors import UserError


def test_every_part_type_batch_and_pass_gets_a_line(capsys):
    projector.main(["--small", "--batch-sizes", "1", "2", "--repeats", "1", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines[lines.index(projector.HEADER) + 1 :]]
    assert len(table) == len({tuple(row[:4]) for row in table}) == 2 * 2 * 2 * 2
    assert {row[0] for row in table} == {"SFE", "DFI"}
    for row in table:
        conv, matmul, ratio = float(row[4]), float(row[5]), float(row[6].removesuffix("x"))
        assert ratio == pytest.approx(conv / matmul, rel=0.3, abs=0.1)
        assert len(row) == len(projector.HEADER.split()) - 2  # two of its headings are two words


def test_forms_that_disagree_are_an_error():
    config = projector.small_sizes()
    part = projector.build_sfe(config, torch.device("cpu"), torch.float32)
    grid = torch.randn(1, 12, 12, config.feature_channels)
    assert list(projector.compare(part, grid, 1e-4, 1e9, repeats=1))
    with torch.no_grad():
        part.parameters[0].mul_(1.01)
    with pytest.raises(RuntimeError, match="The two forms of the SFE differ"):
        list(projector.compare(part, grid, 1e-4, 1e9, repeats=1))


def test_a_gpu_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda"):
        projector.main(["--device", "cuda"])
