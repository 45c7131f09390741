"""The statistical face prior as a shift of the diffused variable (SCLDM eq. 2): x' = s·x + w·p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.errors import CheckpointInvalid


@dataclass(frozen=True)
class PriorShift:
    """x' = scale·x + d with d = weight·prior; `weight` carries the sign of `subtract`.

    The two operations leave out what does nothing, so that no needless node reaches the graph.
    """

    scale: float
    weight: float

    def apply(self, x: Any, offset: Any) -> Any:
        """x' of x; offset is d."""
        scaled = x if self.scale == 1 else x * self.scale
        return scaled if self.weight == 0 else scaled + offset

    def remove(self, shifted: Any, offset: Any) -> Any:
        """x of x'."""
        centred = shifted if self.weight == 0 else shifted - offset
        return centred if self.scale == 1 else centred * (1 / self.scale)


def prior_shift(mode: str, weight: float) -> PriorShift:
    """The shift of a prior mode. Raises CheckpointInvalid for an unknown mode or for `interpolate` with weight 1."""
    if mode == "interpolate" and weight >= 1:
        raise CheckpointInvalid(f"prior mode interpolate with weight {weight} leaves no latent; train with less than 1")
    shifts = {
        "add": PriorShift(1.0, weight),
        "subtract": PriorShift(1.0, -weight),
        "interpolate": PriorShift(1.0 - weight, weight),
        "none": PriorShift(1.0, 0.0),
    }
    if mode not in shifts:
        raise CheckpointInvalid(f"unknown prior mode {mode!r} in the checkpoint; use one of {', '.join(shifts)}")
    return shifts[mode]
