"""What the caller of an export decides; free of torch, so that the command line can refuse before loading it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime.bundle import MAX_STEPS, SOLVERS
from runtime.errors import InvalidArgument

STORES = ("float16", "float32")
GUIDANCE_RANGE = (0.0, 10.0)


@dataclass(frozen=True)
class ExportOptions:
    """Everything else is in the checkpoint. Raises InvalidArgument for values out of range.

    `licence`: that of the exported weights; the licences of their training data come from the checkpoint.
    """

    name: str | None = None
    steps: tuple[int, ...] = (4, 8, 25)
    default_steps: int = 8
    solver: str = "dpmpp_2m"
    store: str = "float16"
    guidance: float = 2.0
    licence: str = "Apache-2.0"
    force: bool = False

    def __post_init__(self) -> None:
        low, high = GUIDANCE_RANGE
        checks = (
            (self.name is None or re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", self.name), "name", "a-z 0-9 . _ - only"),
            (self.steps and all(1 <= n <= MAX_STEPS for n in self.steps), "steps", f"numbers from 1 to {MAX_STEPS}"),
            (self.default_steps in self.steps, "default_steps", f"one of {self.steps}"),
            (self.solver in SOLVERS, "solver", " or ".join(SOLVERS)),
            (self.store in STORES, "store", " or ".join(STORES)),
            (low <= self.guidance <= high, "guidance", f"{low:g} to {high:g}"),
            (re.fullmatch(r"[A-Za-z0-9][\w .+()-]{0,127}", self.licence, re.ASCII), "licence", "an SPDX expression"),
        )
        for good, option, rule in checks:
            if not good:
                raise InvalidArgument(f"export option {option} is {getattr(self, option)!r}; use {rule}")
