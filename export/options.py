"""What the caller of an export decides; free of torch, so that the command line can refuse before loading it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime.bundle import MAX_STEPS, SOLVERS
from runtime.errors import InvalidArgument
from training.arms import ARMS, GUIDANCE

STORES = ("float16", "float32")
GUIDANCE_RANGE = (0.0, 10.0)


@dataclass(frozen=True)
class Sampling:
    """How an exported arm samples; `training.arms` has the defaults."""

    steps: tuple[int, ...]
    default_steps: int
    solver: str


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

    def sampling(self, arm: str, *, most_steps: int) -> Sampling:
        """How a system of this arm is to sample. Raises InvalidArgument where the options do not fit it.

        `most_steps`: for which the network was trained.
        """
        usual = ARMS[arm]
        steps = self.steps or tuple(n for n in usual.steps if n <= most_steps) or (most_steps,)
        default = max(n for n in steps if n <= usual.default_steps or n == min(steps))
        default = default if self.default_steps is None else self.default_steps
        solver = self.solver or usual.solvers[0]
        self._check(
            (self.arm in ("auto", arm), "arm", f"{arm}, which is what this system is"),
            (max(steps) <= most_steps, "steps", f"at most {most_steps}, as this network was trained for"),
            (default in steps, "default_steps", f"one of {steps}"),
            (solver in usual.solvers, "solver", f"{' or '.join(usual.solvers)} for the {arm} arm"),
        )
        return Sampling(steps, default, solver)

    def guidance_scale(self, folded: float | None) -> float:
        """The default guidance of a bundle; `folded`: that which is part of the network, None where it is free.

        Raises InvalidArgument where another one was asked for than is folded in.
        """
        if folded is None:
            return GUIDANCE if self.guidance is None else self.guidance
        rule = f"{folded:g}, which is folded into the network, or export another arm"
        self._check((self.guidance in (None, folded), "guidance", rule))
        return folded

    def _check(self, *rules: tuple[object, str, str]) -> None:
        for good, option, rule in rules:
            if not good:
                raise InvalidArgument(f"export option {option} is {getattr(self, option)!r}; use {rule}")
