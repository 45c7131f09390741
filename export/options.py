"""What the caller of an export decides; free of torch, so that the command line can refuse before loading it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime.bundle import MAX_STEPS, SOLVERS
from runtime.errors import InvalidArgument

STORES = ("float16", "float32")
GUIDANCE_RANGE = (0.0, 10.0)


@dataclass(frozen=True)
class Sampling:
    """How an exported arm samples. `guidance`: the default, or what is folded in."""

    steps: tuple[int, ...]
    default_steps: int
    solver: str
    guidance: float


ARMS = {
    "shortcut": Sampling((1, 2, 4, 8), 4, "shortcut", 2.0),
    "diffusion": Sampling((4, 8, 25), 8, "dpmpp_2m", 2.0),
}
"""What each arm of training is exported with unless the caller, or the network, says otherwise."""

ARM_SOLVERS = {"shortcut": ("shortcut",), "diffusion": ("dpmpp_2m", "ddim")}


@dataclass(frozen=True)
class ExportOptions:
    """Everything else is in the checkpoint; what is None is decided by the arm, see `sampling`.

    `licence`: that of the exported weights; the licences of their training data come from the checkpoint.
    Raises InvalidArgument for values out of range.
    """

    name: str | None = None
    arm: str = "auto"
    steps: tuple[int, ...] | None = None
    default_steps: int | None = None
    solver: str | None = None
    store: str = "float16"
    guidance: float | None = None
    licence: str = "Apache-2.0"
    force: bool = False

    def __post_init__(self) -> None:
        (low, high), steps, default = GUIDANCE_RANGE, self.steps, self.default_steps
        in_range = steps is None or (steps and all(1 <= n <= MAX_STEPS for n in steps))
        self._check(
            (self.name is None or re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", self.name), "name", "a-z 0-9 . _ - only"),
            (self.arm in ("auto", *ARMS), "arm", f"auto, {' or '.join(ARMS)}"),
            (in_range, "steps", f"numbers from 1 to {MAX_STEPS}"),
            (default is None or steps is None or default in steps, "default_steps", f"one of {steps}"),
            (self.solver is None or self.solver in SOLVERS, "solver", " or ".join(SOLVERS)),
            (self.store in STORES, "store", " or ".join(STORES)),
            (self.guidance is None or low <= self.guidance <= high, "guidance", f"{low:g} to {high:g}"),
            (re.fullmatch(r"[A-Za-z0-9][\w .+()-]{0,127}", self.licence, re.ASCII), "licence", "an SPDX expression"),
        )

    def sampling(self, arm: str, *, folded_guidance: float | None, most_steps: int) -> Sampling:
        """How a system of this arm is to sample. Raises InvalidArgument where the options do not fit it.

        `folded_guidance`: the guidance that is part of the network, None where it is free. `most_steps`: for which the
        network was trained.
        """
        usual = ARMS[arm]
        steps = self.steps or tuple(n for n in usual.steps if n <= most_steps) or (most_steps,)
        default = max(n for n in steps if n <= usual.default_steps or n == min(steps))
        default = default if self.default_steps is None else self.default_steps
        solver, guidance = self.solver or usual.solver, usual.guidance if folded_guidance is None else folded_guidance
        changes = folded_guidance is not None and self.guidance not in (None, folded_guidance)
        self._check(
            (self.arm in ("auto", arm), "arm", f"{arm}, which is what this system is"),
            (max(steps) <= most_steps, "steps", f"at most {most_steps}, as this network was trained for"),
            (default in steps, "default_steps", f"one of {steps}"),
            (solver in ARM_SOLVERS[arm], "solver", f"{' or '.join(ARM_SOLVERS[arm])} for the {arm} arm"),
            (not changes, "guidance", f"{guidance:g}, which is folded into the {arm} arm, or export another arm"),
        )
        return Sampling(steps, default, solver, guidance if self.guidance is None else self.guidance)

    def _check(self, *rules: tuple[object, str, str]) -> None:
        for good, option, rule in rules:
            if not good:
                raise InvalidArgument(f"export option {option} is {getattr(self, option)!r}; use {rule}")
