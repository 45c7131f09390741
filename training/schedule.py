"""Which few timesteps serve a trained network best: searched, once, on validation voices.

A candidate is judged by how far its latents end from those of many steps from the same noise. Both arms have few
candidates worth trying, so all are tried.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from training.sampler import Network, sample
from training.sampling import StepTable

logger = logging.getLogger(__name__)

SEARCHED = (4, 8, 25)
SPACINGS = (0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
VOICES = 32

Schedule = tuple[float, ...]


@torch.no_grad()
def search(
    network: Network, source: Tensor, candidates: Mapping[Schedule, StepTable], fine: StepTable, clip: float
) -> Schedule:
    """The candidate whose latents lie nearest (mean square) to the fine table's; the first of equals."""
    limit = sample(network, source, fine, clip)
    errors = {c: float((sample(network, source, t, clip) - limit).square().mean()) for c, t in candidates.items()}
    for candidate, error in errors.items():
        logger.info("schedule %s: mean square distance to %d steps %.4f", candidate, len(fine), error)
    return min(errors, key=lambda candidate: errors[candidate])


def spacings() -> list[Schedule]:
    """Exponents for `training.sampling.step_table`: above 1, steps lie closer where little noise is left."""
    return [(one,) for one in SPACINGS]


def leaps(steps: int, levels: int) -> list[Schedule]:
    """Step sizes for `training.sampling.shortcut_table` that rise or fall throughout, equal ones first."""
    rising = sorted(_partitions(steps, 2 ** (levels - 1), 2 ** (levels - 1)), key=max)
    return [*dict.fromkeys(order for sizes in rising for order in (sizes, sizes[::-1]))]


def _partitions(parts: int, total: int, largest: int) -> Iterator[Schedule]:
    """`total` as `parts` powers of two not above `largest`, falling; in units of the finest size, given as shares."""
    yield from (tuple(p / total for p in found) for found in _whole(parts, total, largest))


def _whole(parts: int, total: int, largest: int) -> Iterator[tuple[int, ...]]:
    if parts == 0:
        if total == 0:
            yield ()
        return
    while largest:
        if largest <= total <= largest * parts:
            for rest in _whole(parts - 1, total - largest, largest):
                yield (largest, *rest)
        largest //= 2


def as_tensors(schedules: Mapping[int, Schedule]) -> dict[str, Tensor]:
    """For a checkpoint."""
    return {f"schedule.{steps}": torch.tensor(found, dtype=torch.float64) for steps, found in schedules.items()}


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[int, Schedule]:
    """What `as_tensors` wrote, from the group "schedule" of a checkpoint."""
    return {int(steps): tuple(value.tolist()) for steps, value in tensors.items()}
