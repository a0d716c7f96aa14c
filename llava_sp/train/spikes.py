"""Sudden jumps of the loss, which a mean over the logging steps would hide."""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

WINDOW = 100
"""Steps that a loss is compared with."""

LEAST = 20
"""Steps without which there is no comparison."""

FACTOR = 2.5
"""A loss this many times the largest of the window is a spike.

The largest and not the median, for batches of short answers differ by far more than any deviation of theirs suggests.
"""


@dataclass(frozen=True)
class Spike:
    """A loss that jumps.

    Args:
        step: The optimizer step.
        loss: Its loss.
        threshold: What a loss may be at most to be none.
        median: Median of the steps before.
    """

    step: int
    loss: float
    threshold: float
    median: float

    def __str__(self) -> str:
        return (
            f"The loss jumps to {self.loss:.4g} in step {self.step}; the median of the steps before is "
            f"{self.median:.4g}, and {FACTOR:g} times the largest of them {self.threshold:.4g}."
        )


class SpikeDetector:
    """Finds the steps at which the loss jumps, by the losses of up to `WINDOW` steps before each."""

    def __init__(self) -> None:
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._high = 0
        """Steps that the present spike has lasted."""

    def observe(self, step: int, loss: float) -> Spike | None:
        """Takes the loss of a step; returns the spike that begins there, if one does.

        It lasts until the loss is back below the threshold, and in the window counts as the largest loss before it. A
        loss that stays high for `LEAST` steps is the usual one from then on.
        """
        if len(self._window) < LEAST:
            if math.isfinite(loss):
                self._window.append(loss)
            return None
        largest = max(self._window)
        spike = Spike(step, loss, FACTOR * largest, median(self._window))
        self._high = 0 if loss <= spike.threshold else self._high + 1  # NaN is a spike too
        usual = self._high == 0 or (self._high > LEAST and math.isfinite(loss))
        self._window.append(loss if usual else largest)
        return spike if self._high == 1 else None

    def state_dict(self) -> dict[str, Any]:
        """Returns what a run that continues needs to find the same spikes, as JSON takes it."""
        return {"window": list(self._window), "high": self._high}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned."""
        self._window = deque(state["window"], maxlen=WINDOW)
        self._high = state["high"]
