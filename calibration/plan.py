"""Which layers compute in eight bits: what each one alone does to the portrait, and the plan that meets the gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from calibration.activations import Activations
from calibration.layers import Layer
from calibration.quality import Drawn
from runtime.portrait import psnr


@dataclass(frozen=True)
class Sensitivity:
    """What one layer alone does when it is quantised.

    `operations`: multiply-adds of a portrait at the default steps; `psnr`: of the portraits, dB, one per pair;
    `damage`: their mean squared error.
    """

    layer: Layer
    operations: int
    psnr: tuple[float, ...]
    damage: float

    @property
    def worth(self) -> float:
        """Damage per operation saved: the layer with the most of it is given back to float32 first."""
        return self.damage / max(self.operations, 1)


def sensitivity_of(layer: Layer, operations: int, reference: Drawn, drawn: Drawn) -> Sensitivity:
    """Hold the portraits of a graph in which only `layer` is quantised against the float32 ones."""
    pairs = list(zip(reference.images, drawn.images, strict=True))
    errors = [float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)) for a, b in pairs]
    return Sensitivity(layer, operations, tuple(psnr(a, b) for a, b in pairs), float(np.mean(errors)))


def operations_of(layer: Layer, seen: Activations) -> int:
    """Multiply-adds of one run for one portrait, from the shape of what the layer gave."""
    results = prod(seen.tensors[layer.stage][layer.result].shape[1:])
    if layer.operator == "Conv":
        return results * prod(layer.shape[1:])
    return results * layer.shape[1 - layer.axis]


def search(worst_first: Sequence[str], misses: Callable[[frozenset[str]], Sequence[str]]) -> frozenset[str] | None:
    """The names that stay quantised so that as few as possible are given back and nothing is missed.

    `worst_first`: all of them, by falling `worth`; `misses`: what the gate says of a plan. Fewer quantised layers are
    taken to be better, so the number to give back is found by halving. None where even the last one must be given back.
    """

    def passes(given_back: int) -> bool:
        return not misses(frozenset(worst_first[given_back:]))

    low, high = 0, 1
    if passes(0):
        return frozenset(worst_first)
    while high < len(worst_first) and not passes(high):
        low, high = high, high * 2
    high = min(high, len(worst_first))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return frozenset(worst_first[high:]) or None


def worst_first(found: Mapping[str, Sensitivity]) -> list[str]:
    """The names of layers by falling `worth`; equals by name, so that the order is the same every time."""
    return sorted(found, key=lambda name: (-found[name].worth, name))
