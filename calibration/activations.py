"""What the tensors of a graph hold while portraits are drawn: extremes per step, and a histogram over all of them.

The values come from the sampler itself, at the numbers of steps that are served (Q-Diffusion, Li et al. 2023,
arXiv:2302.04304, calibrates on intermediate latents for the same reason): a range taken from noise alone, or from
clean latents alone, would not hold for the other.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from runtime.errors import BackendFailed

BINS = 2048  # over −2^exponent … 2^exponent
DIGEST = hashlib.sha256().digest_size
WIDEST = 126  # exponent up to which float32 holds the distance between the outer edges
Floats = NDArray[np.float32]


@dataclass
class Observed:
    """One tensor. `steps`: lowest and highest value by row of the step tables; `counts` int64 [BINS] over ±2^exponent;
    `columns` float32 [n]: the largest magnitude at each place of the last axis, where that was asked for.
    """

    steps: dict[int, tuple[float, float]] = field(default_factory=dict)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    exponent: int = -64
    columns: Floats | None = None
    shape: tuple[int, ...] = ()

    @property
    def extremes(self) -> tuple[float, float]:
        """The lowest and the highest value of all steps."""
        return min(low for low, _ in self.steps.values()), max(high for _, high in self.steps.values())

    @property
    def edges(self) -> NDArray[np.float64]:
        """The borders of the bins, float64 [BINS + 1]."""
        return np.linspace(-(2.0**self.exponent), 2.0**self.exponent, BINS + 1)

    def add(self, values: Floats, row: int) -> None:
        """Take in one run's values."""
        low, high = float(values.min()), float(values.max())
        before = self.steps.get(row, (low, high))
        self.steps[row] = min(low, before[0]), max(high, before[1])
        self.shape = values.shape
        largest = max(abs(low), abs(high))
        while largest >= 2.0**self.exponent:  # two bins become one, so that what was counted stays exact
            halves = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = halves
            self.exponent += 1
            if not halves.any():
                self.exponent = max(self.exponent, int(np.ceil(np.log2(largest))))
        border = 2.0**self.exponent
        wide = values.astype(np.float64) if self.exponent > WIDEST else values
        self.counts += np.histogram(wide, BINS, (-border, border))[0]

    def add_columns(self, values: Floats) -> None:
        """Take in the magnitudes along the last axis."""
        largest = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
        self.columns = largest if self.columns is None else np.maximum(self.columns, largest)


class Activations:
    """What was observed, by stage and tensor."""

    def __init__(self, watched: Mapping[str, Iterable[str]], columns: Iterable[tuple[str, str]] = ()) -> None:
        """`watched`: tensor names by stage; `columns`: those, as (stage, name), whose last axis is looked at too."""
        self.tensors = {stage: {name: Observed() for name in names} for stage, names in watched.items()}
        self._columns = set(columns)
        self.done = 0
        """Portraits taken in, which is where an interrupted calibration goes on."""

    def see(self, stage: str, row: int, values: Mapping[str, NDArray[Any]]) -> None:
        """Take in the values of one run. Raises BackendFailed naming a tensor that is not finite."""
        for name, observed in self.tensors.get(stage, {}).items():
            if not np.isfinite(values[name]).all():
                raise BackendFailed(
                    f"The tensor {name} of the {stage} graph holds NaN or infinite values while portraits are drawn, "
                    "so nothing can be calibrated. Run `s2f verify` on the bundle and look at its training"
                )
            observed.add(values[name], row)
            if (stage, name) in self._columns:
                observed.add_columns(values[name])

    def to_bytes(self) -> bytes:
        """Everything, for `restore`: an .npz after its sha256, because NumPy fails on damaged ones in any way."""
        arrays: dict[str, NDArray[Any]] = {"done": np.array(self.done)}
        for stage, tensors in self.tensors.items():
            for index, one in enumerate(tensors.values()):
                key = f"{stage}/{index}"
                arrays[f"{key}/counts"], arrays[f"{key}/exponent"] = one.counts, np.array(one.exponent)
                arrays[f"{key}/steps"] = np.array([(row, *ends) for row, ends in one.steps.items()], np.float64)
                arrays[f"{key}/shape"] = np.array(one.shape, np.int64)
                if one.columns is not None:
                    arrays[f"{key}/columns"] = one.columns
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()

    def restore(self, data: bytes) -> None:
        """Go on from what `to_bytes` gave for the same tensors. Raises ValueError and changes nothing if it cannot."""
        digest, kept = data[:DIGEST], data[DIGEST:]
        if hashlib.sha256(kept).digest() != digest:
            raise ValueError("What was observed is damaged")
        try:
            with np.load(io.BytesIO(kept), allow_pickle=False) as arrays:
                tensors = {
                    stage: {name: _observed(arrays, f"{stage}/{index}") for index, name in enumerate(names)}
                    for stage, names in self.tensors.items()
                }
                done = int(arrays["done"])
        except KeyError as error:
            raise ValueError("What was observed is of other tensors") from error
        self.tensors, self.done = tensors, done


def _observed(arrays: Mapping[str, NDArray[Any]], key: str) -> Observed:
    """One tensor out of what `Activations.to_bytes` made."""
    steps = {int(row): (low, high) for row, low, high in arrays[f"{key}/steps"].tolist()}
    shape = tuple(arrays[f"{key}/shape"].tolist())
    counts, exponent = arrays[f"{key}/counts"], int(arrays[f"{key}/exponent"])
    return Observed(steps, counts, exponent, arrays.get(f"{key}/columns"), shape)


def observable(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """A copy of a graph that gives these tensors too, beside its outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    given = {value.name for value in (*copy.graph.output, *copy.graph.input)}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in given)
    return copy
