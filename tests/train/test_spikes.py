"""A jump of the loss is one event, and a run without one has none, however its losses differ."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from llava_sp.train.spikes import LEAST, Spike, SpikeDetector

RANDOM = np.random.default_rng(0)


def noisy(level: np.ndarray, spread: float) -> np.ndarray:
    """Losses about a level, with a log-normal spread."""
    return level * RANDOM.lognormal(0, spread, len(level))


def falling(steps: int = 1000) -> np.ndarray:
    """Stage 1: from 8 to 2.5 in some 100 steps."""
    return noisy(2.4 + 5.6 * np.exp(-np.arange(steps) / 30), 0.06)


def short_answers(steps: int = 1000) -> np.ndarray:
    """Small batches of answers of a word, most of them known by now, as differing as those of the tiny world."""
    return noisy(np.full(steps, 0.03), 0.63)


ORDINARY = {
    "the start of stage 1": falling(),
    "a long plateau": noisy(np.full(5000, 1.1), 0.15),
    "a warm-up of 300 steps": noisy(8 - 5.4 * np.minimum(np.arange(1000) / 300, 1), 0.04),
    "batches of two modalities": noisy(np.where(RANDOM.random(5000) < 0.3, 2.2, 0.4), 0.15),
}

NOISY = {
    "short answers": short_answers(),
    "short answers of any difficulty": np.exp(RANDOM.uniform(np.log(0.02), np.log(0.5), 5000)),
}


def spikes(losses: Sequence[float] | np.ndarray, detector: SpikeDetector | None = None) -> list[Spike]:
    detector = detector or SpikeDetector()
    found = (detector.observe(step, float(loss)) for step, loss in enumerate(losses, start=1))
    return [spike for spike in found if spike is not None]


@pytest.mark.parametrize("name", [*ORDINARY, *NOISY])
def test_a_run_without_a_spike_has_none(name: str) -> None:
    assert spikes({**ORDINARY, **NOISY}[name]) == []


@pytest.mark.parametrize("name", ORDINARY)
def test_fifty_times_the_loss_is_a_spike_at_every_step_after_the_first(name: str) -> None:
    losses = ORDINARY[name][:300].tolist()
    detector = SpikeDetector()
    for step, loss in enumerate(losses, start=1):
        if step > LEAST:
            other = SpikeDetector()
            other.load_state_dict(detector.state_dict())
            assert spikes([50 * loss, *losses[step:]], other) == [Spike(1, 50 * loss, *threshold(losses[: step - 1]))]
        detector.observe(step, loss)


def threshold(before: list[float]) -> tuple[float, float]:
    return 2.5 * max(before[-100:]), float(np.median(before[-100:]))


@pytest.mark.parametrize("name", NOISY)
def test_fifty_times_the_usual_loss_is_a_spike_where_losses_differ_widely(name: str) -> None:
    losses = NOISY[name].copy()
    places = range(200, len(losses), 200)
    losses[list(places)] = 50 * np.median(losses)
    assert [spike.step for spike in spikes(losses)] == [place + 1 for place in places]


def test_a_spike_of_several_steps_is_one() -> None:
    losses = [2.0] * 30 + [100.0, 70.0, 90.0] + [2.0] * 30 + [100.0] + [2.0] * 30
    assert [spike.step for spike in spikes(losses)] == [31, 64]


def test_a_loss_that_stays_high_is_one_spike_and_then_the_usual_one() -> None:
    losses = [2.0] * 100 + [19.0] * 200 + [400.0]
    assert [spike.step for spike in spikes(losses)] == [101, 301]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_a_spike_and_spoils_nothing(bad: float) -> None:
    losses = [bad] + [2.0] * 30 + [bad] + [2.0] * 30 + [100.0]
    assert [spike.step for spike in spikes(losses)] == [32, 63]


@pytest.mark.parametrize("cut", [5, 60, 151, 152])
def test_a_run_that_continues_finds_the_same(cut: int) -> None:
    losses = falling(300)
    losses[150:153] *= 50
    losses[220] *= 50
    first, second = SpikeDetector(), SpikeDetector()
    found = spikes(losses[:cut], first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [Spike(spike.step + cut, *list(vars(spike).values())[1:]) for spike in spikes(losses[cut:], second)]
    assert found == spikes(losses)
    assert [spike.step for spike in found] == [151, 221]


def test_a_spike_is_told_in_a_line() -> None:
    (spike,) = spikes([2.0] * 30 + [100.0])
    line = "The loss jumps to 100 in step 31; the median of the steps before is 2, and 2.5 times the largest of them 5."
    assert str(spike) == line
