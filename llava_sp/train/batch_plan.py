"""How a global batch is made of ranks, per-device batches and accumulation."""

from dataclasses import dataclass

from llava_sp.utils.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """The three numbers whose product is the global batch.

    Args:
        per_device: Samples in one micro-batch of one rank.
        accumulation: Micro-batches per rank and optimizer step.
        ranks: Number of processes that train together.
    """

    per_device: int
    accumulation: int
    ranks: int

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step over all ranks."""
        return self.per_device * self.accumulation * self.ranks

    def __str__(self) -> str:
        return (
            f"{self.global_batch} samples per step = {self.per_device} per device x {self.accumulation} accumulation "
            f"x {self.ranks} rank{'s' if self.ranks > 1 else ''}"
        )


def plan_batch(*, per_device: int, ranks: int, global_batch: int | None, accumulation: int | None) -> BatchPlan:
    """Finds the accumulation that makes the global batch, or checks the one given.

    Args:
        per_device: Samples in one micro-batch of one rank.
        ranks: Number of processes that train together.
        global_batch: Samples per optimizer step wanted, or None if it is to follow from `accumulation`.
        accumulation: Micro-batches per optimizer step, or None if it is to follow from `global_batch`.

    Raises:
        UserError: The numbers are not positive, or do not multiply to the global batch; the message names them.
    """
    for name, value in (
        ("per_device_train_batch_size", per_device),
        ("global_batch_size", global_batch),
        ("gradient_accumulation_steps", accumulation),
    ):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}.")
    if global_batch is None:
        return BatchPlan(per_device, accumulation or 1, ranks)
    if accumulation is None:
        accumulation, rest = divmod(global_batch, per_device * ranks)
        if rest or not accumulation:
            raise UserError(
                f"global_batch_size {global_batch} is no multiple of per_device_train_batch_size {per_device} x "
                f"{ranks} rank{'s' if ranks > 1 else ''} = {per_device * ranks}; change one of the three"
                f"{_suggest(global_batch, ranks)}."
            )
    plan = BatchPlan(per_device, accumulation, ranks)
    if plan.global_batch != global_batch:
        raise UserError(
            f"global_batch_size {global_batch} differs from per_device_train_batch_size {per_device} x "
            f"gradient_accumulation_steps {accumulation} x {ranks} ranks = {plan.global_batch}; leave "
            "gradient_accumulation_steps out and it follows."
        )
    return plan


def _suggest(global_batch: int, ranks: int) -> str:
    if global_batch % ranks:
        return ""
    share = global_batch // ranks
    fitting = [size for size in (1, 2, 4, 8, 16, 32, 64) if share % size == 0]
    return f" (per device, {', '.join(map(str, fitting))} would do)"
