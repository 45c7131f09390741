"""How the statistical face prior enters diffusion (SCLDM eq. 2): x' = s·x + d, for noise, x_t and x_0 alike."""

from __future__ import annotations

from torch import Tensor

from runtime.errors import ConfigInvalid
from runtime.specs import PRIOR_MODES

Shift = tuple[float, Tensor]  # s, and d float32 [1, C, h, w]


def prior_shift(mode: str, weight: float, prior: Tensor) -> Shift:
    """s and d for a prior float32 [C, h, w]: z + w p, (1−w) z + w p, z − w p, or z as it is."""
    if mode not in PRIOR_MODES:
        raise ConfigInvalid(f"prior mode is {mode!r}; use one of {', '.join(PRIOR_MODES)}")
    scale = 1 - weight if mode == "interpolate" else 1.0
    sign = {"add": 1.0, "interpolate": 1.0, "subtract": -1.0, "none": 0.0}[mode]
    return scale, sign * weight * prior.unsqueeze(0)
