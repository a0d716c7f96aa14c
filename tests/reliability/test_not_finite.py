"""NaN and infinity, wherever they appear, stop a run before they are learned or saved."""

import shutil

import pytest

from llava_sp.train import checkpoint
from llava_sp.utils.manifest import seal
from tests.reliability.counting import COUNTS
from tests.reliability.runs import ZERO_2, Runs, bits


@pytest.mark.parametrize(
    ("what", "ranks", "told"),
    [
        ("input", 1, "The loss is not finite in step 3"),
        ("loss", 1, "The loss is not finite in step 3"),
        ("loss", 2, "The loss is not finite in step 3"),
        ("gradient", 1, "The gradient's norm is not finite in step 3"),
        ("gradient", 2, "The gradient's norm is not finite in step 3"),
        ("weight", 1, "The loss is not finite in step 3"),
        ("update", 1, "After step 3 the weights hold numbers that cannot be weights"),
        ("update", 2, "After step 3 the weights hold numbers that cannot be weights"),
    ],
)
def test_it_stops_before_the_update_and_nothing_of_it_is_saved(runs: Runs, what: str, ranks: int, told: str) -> None:
    flags = ZERO_2 if ranks > 1 else []
    output = f"not-finite-{what}-{ranks}"
    stopped = runs.run(output, *flags, ranks=ranks, fault=f"not_finite:{what}@3")
    assert set(stopped.codes) == {2}, stopped.text
    assert told in stopped.text
    assert "checkpoint-2" in stopped.text  # where it continues from
    assert "Traceback" not in stopped.text
    if told.startswith("The loss"):
        assert "sample" in stopped.text.split(told)[1]  # the samples are named
    saved = checkpoint.checkpoints(runs / output)
    assert [path.name for path in saved] == ["checkpoint-1", "checkpoint-2"]
    assert not (runs / output / "llava_sp.json").exists()
    again = runs.run(output, *flags, ranks=ranks)
    assert set(again.codes) == {0}, again.text
    whole = f"not-finite-whole-{ranks}"
    if not (runs / whole).exists():
        assert set(runs.run(whole, *flags, ranks=ranks).codes) == {0}
    assert bits(runs / output) == bits(runs / whole)
    COUNTS["faults injected"] += 1
    COUNTS["faults survived"] += 1
    COUNTS["runs ended with the bits of an undisturbed one"] += 1


def test_a_start_from_weights_that_are_not_finite_is_refused(runs: Runs) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    assert runs.run("flawed", "--stop_after_steps", "1").codes == [0]
    source = runs / "flawed-start"
    shutil.copytree(runs / "flawed" / "checkpoint-1", source)
    file = next(source.glob("*.safetensors"))
    weights = load_file(file)
    name = next(name for name in weights if "multi_modal_projector" in name)
    weights[name].view(-1)[0] = torch.inf
    save_file(weights, file, metadata={"format": "pt"})
    seal(source)
    stopped = runs.run("flawed-end", "--init_from", str(source))
    assert stopped.codes == [2], stopped.text
    assert name.split(".")[-2] in stopped.text
    assert "The weights to start from hold numbers that cannot be weights" in stopped.text
