"""The arms of a system: how each kind of trained denoiser samples unless the caller says otherwise. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """`solvers`: those that fit the network, the default first."""

    steps: tuple[int, ...]
    default_steps: int
    solvers: tuple[str, ...]


ARMS = {  # the one that is preferred where it is trained comes first
    "shortcut": Arm((1, 2, 4, 8), 4, ("shortcut",)),
    "diffusion": Arm((4, 8, 25), 8, ("dpmpp_2m", "ddim")),
}
GUIDANCE = 1.75  # where the network leaves it free, and what the shortcut arm folds in unless configured otherwise
