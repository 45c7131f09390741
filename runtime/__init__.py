"""Speech in, portrait out.

>>> import runtime
>>> with runtime.load() as pipeline:
...     pipeline.generate("voice.wav", seed=7).save("portrait.png")

A voice does not determine a face: a portrait is plausible, not a likeness, and identifies nobody.
Importing this package loads none of its dependencies; they come with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import ALL_ERRORS, CODES, S2FError

if TYPE_CHECKING:
    from .pipeline import Pipeline, generate, load
    from .portrait import Portrait, Timings
    from .stream import Stream

__version__ = "0.1.0"

__all__ = [
    "ALL_ERRORS",
    "CODES",
    "Pipeline",
    "Portrait",
    "S2FError",
    "Stream",
    "Timings",
    "__version__",
    "generate",
    "load",
]

_HOMES = {
    "Pipeline": "pipeline",
    "generate": "pipeline",
    "load": "pipeline",
    "Portrait": "portrait",
    "Timings": "portrait",
    "Stream": "stream",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
