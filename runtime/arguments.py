"""Checks of what callers give: numbers, ranges, seeds. Each returns the value as used, or raises InvalidArgument."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import InvalidArgument
from .noise import MAX_SEED


def seeds(seed: int | Sequence[int], speeches: int) -> list[int]:
    """One seed per portrait. Raises InvalidArgument for bad seeds, an empty list or lists that do not pair."""
    if speeches == 0:
        raise InvalidArgument("The list of speeches is empty. Give at least one.")
    if is_integer(seed):
        return [integer("seed", seed, 0, MAX_SEED)] * speeches
    if isinstance(seed, (str, bytes)) or not isinstance(seed, (Sequence, np.ndarray)) or len(seed) == 0:
        raise InvalidArgument(f"seed must be a whole number or a list of them, not {seed!r:.40}.")
    seeds = [integer("seed", one, 0, MAX_SEED) for one in seed]
    if speeches not in (1, len(seeds)):
        raise InvalidArgument(f"{len(seeds)} seeds for {speeches} speeches. Give one seed, or one per speech.")
    return seeds


def is_integer(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, np.ndarray)


def integer(name: str, value: Any, low: int, high: int | None) -> int:
    """A whole number in range; True and 1.0 are none. Raises InvalidArgument."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        limits = f"{low} or more" if high is None else f"in {low}..{high}"
        raise InvalidArgument(f"{name} must be a whole number {limits}, not {value!r:.40}.")
    return number


def seconds(name: str, value: Any, low: float, high: float) -> float:
    """A number in range. Raises InvalidArgument."""
    if isinstance(value, (bool, str, bytes)) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidArgument(f"{name} must be a number of seconds in {low:g}..{high:g}, not {value!r:.40}.")
    return float(value)


def within(name: str, value: Any, default: float, limits: tuple[float, float], bundle: str) -> float:
    """A number within the bundle's limits, or its default for None. Raises InvalidArgument.

    A limit given as float32, which is what the graphs take, is that limit: np.float32(0.1) is within 0..0.1.
    """
    low, high = limits
    if value is None:
        return default
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    nearest = min(max(number, low), high)
    if math.isclose(number, nearest, rel_tol=1e-7):
        return nearest
    if low == high:
        problem = f"The bundle {bundle} folds {name} {default:g} into its graphs, so it cannot be {value!r:.40}."
        raise InvalidArgument(f"{problem} Leave {name} out or use another bundle.")
    raise InvalidArgument(f"{name} must be a number in {low:g}..{high:g} for the bundle {bundle}, not {value!r:.40}.")
