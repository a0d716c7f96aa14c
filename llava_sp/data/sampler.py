"""The order of samples: shuffled, or grouped by modality and length as LLaVA does."""

import heapq
from collections.abc import Iterator
from itertools import chain, cycle, islice

import numpy as np
from torch.utils.data import Sampler


class ModalityLengthSampler(Sampler[int]):
    """Every sample in each epoch, in an order that depends on nothing but the arguments and the epoch.

    Grouped, the samples of one optimizer step (a megabatch, `world_size * batch_size` of them) are all with an image
    or all without, and its micro-batches hold about the same number of words, so that ranks wait little for each other.
    The steps come in random order. What is left of each modality comes last, in micro-batches of one modality, but for
    the very last ones. The last step is filled up by the samples that came first, or dropped.

    The order is the global one: ranks take micro-batches in turn, as accelerate shards a batch sampler. All its steps
    are whole, so that each has the same samples on any number of ranks.

    Args:
        lengths: Length of each sample; negative for one without an image, never 0.
        batch_size: Samples in a micro-batch.
        world_size: Micro-batches in an optimizer step: ranks times accumulation steps.
        seed: Seed of the order; the global random state is neither used nor changed.
        group: Whether to group; if not, the order is a plain shuffle.
        drop_last: Whether a last step that is not whole is dropped.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        world_size: int,
        seed: int,
        group: bool,
        drop_last: bool = False,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.world_size = world_size
        self.seed = seed
        self.group = group
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration goes through, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        megabatch = self.world_size * self.batch_size
        steps, rest = divmod(len(self.lengths), megabatch)
        return (steps + (rest > 0 and not self.drop_last)) * megabatch

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = self._grouped(random) if self.group else random.permutation(len(self.lengths)).tolist()
        return islice(cycle(order), len(self))

    def _grouped(self, random: np.random.Generator) -> list[int]:
        megabatch = self.world_size * self.batch_size
        whole: list[list[int]] = []
        last_batches: list[list[int]] = []
        remainders: list[list[int]] = []
        for modality in (self.lengths > 0, self.lengths < 0):
            indices = random.permutation(np.flatnonzero(modality)).tolist()
            end = len(indices) // megabatch * megabatch
            whole += [self._balance(indices[start : start + megabatch]) for start in range(0, end, megabatch)]
            last = self._longest_first(indices[end:])
            end = len(last) // self.batch_size * self.batch_size
            last_batches.append(last[:end])
            remainders.append(last[end:])
        order = [whole[position] for position in random.permutation(len(whole))]
        return list(chain(*order, *last_batches, *remainders))

    def _longest_first(self, indices: list[int]) -> list[int]:
        return sorted(indices, key=lambda index: -abs(self.lengths[index]))

    def _balance(self, indices: list[int]) -> list[int]:
        """Deals a megabatch out to micro-batches: the longest sample left goes where there are the fewest words."""
        batches: list[list[int]] = [[] for _ in range(self.world_size)]
        open_batches = [(0, number) for number in range(self.world_size)]
        for index in self._longest_first(indices):
            words, number = heapq.heappop(open_batches)
            batches[number].append(index)
            if len(batches[number]) < self.batch_size:
                heapq.heappush(open_batches, (words + abs(int(self.lengths[index])), number))
        return list(chain(*batches))
