"""What every backend is: open bytes, list tensors, run named arrays, close. All checks stand here, none in a backend.

A backend subclasses `Session` with four short methods. It may trust what it is handed and need not check what it
returns: names, dtypes, shapes, one common batch size, memory layout and finite numbers are looked at on this side.
What one graph hands to the next may stay on the device, as `Kept` values: they are checked like arrays, but for their
numbers, which the host does not see.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from ..bundle import TensorSpec
from ..errors import BackendFailed, BundleInvalid, Closed, InvalidArgument

Array: TypeAlias = "npt.NDArray[Any]"


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """A tensor on the device: `value` is the backend's own, for sessions of the same backend and device."""

    value: Any
    dtype: str
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number of dimensions, as numpy says it."""
        return len(self.shape)


Tensor: TypeAlias = "Array | Kept"
Arrays: TypeAlias = "Mapping[str, Tensor]"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a graph is to be run: `device` is a name the backend serves, `threads` the cores it may use (≥ 1).

    `precision`: one of `precision.PRECISIONS`; "auto" is the device's own choice. Where it is in the graphs, they have
    to be read for it (`precision.variant_for`).
    """

    device: str
    threads: int
    precision: str = "auto"


@dataclasses.dataclass(frozen=True)
class Device:
    """One device name and whether it works here. `reason` says why not, `cure` what to do; both empty if usable."""

    name: str
    backend: str
    usable: bool
    reason: str = ""
    cure: str = ""


class Session(abc.ABC):
    """One opened graph. Not for two threads at once: the pipeline holds a lock around it.

    `prepared`: it was opened as `s2f prepare` has kept it, not optimised or compiled at load.
    """

    backend: ClassVar[str]

    def __init__(
        self,
        stage: str,
        data: bytes,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        settings: Settings,
        *,
        source: str = "",
    ) -> None:
        """Open ONNX `data` and compare its tensors with those the manifest lists.

        `source`: the sha256 of `data`, if it was verified; what was prepared of it is looked for under that.

        Raises BackendFailed where the backend refuses the graph, BundleInvalid where the tensors differ, and the
        errors of the device (DeviceUnavailable, BackendMissing).
        """
        self.stage, self.source = stage, source
        self.inputs = {spec.name: spec for spec in inputs}
        self.outputs = {spec.name: spec for spec in outputs}
        self._closed = self.prepared = False
        self._open(data, settings)
        try:
            found_inputs, found_outputs = self._specs()
            _compare(stage, "inputs", self.inputs, found_inputs)
            _compare(stage, "outputs", self.outputs, found_outputs)
        except Exception:
            self.close()
            raise

    def run(self, feeds: Arrays, *, keep: bool = False) -> dict[str, Tensor]:
        """Run the graph once: exactly its inputs by name, in; all its outputs by name, out.

        Arrays must have the dtype and shape of the manifest; "batch" may be any size ≥ 1, the same in every tensor.
        `keep`: outputs may stay on the device, as values for another session; a backend without such memory gives
        arrays all the same. Raises InvalidArgument (inputs), BackendFailed (the backend or its outputs), Closed.
        """
        if self._closed:
            raise Closed(f"The {self.stage} session is closed. Load the bundle again.")
        batch = self._check_inputs(feeds)
        results = self._run({name: _laid_out(feeds[name]) for name in self.inputs}, keep)
        return self._check_outputs(results, batch)

    def close(self) -> None:
        """Give memory and threads back. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._close()

    @abc.abstractmethod
    def _open(self, data: bytes, settings: Settings) -> None:
        """Open the graph on exactly the device asked for; another device is an error, never a fallback."""

    @abc.abstractmethod
    def _specs(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Inputs and outputs as the opened graph has them; a dynamic dimension is the string "batch"."""

    @abc.abstractmethod
    def _run(self, feeds: dict[str, Tensor], keep: bool) -> Sequence[Tensor]:
        """Outputs in the order of `self.outputs`: arrays, or `Kept` where that is allowed. Raises BackendFailed."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Drop everything held."""

    def _check_inputs(self, feeds: Arrays) -> int | None:
        if feeds.keys() != self.inputs.keys():
            raise InvalidArgument(f"{self.stage} takes {', '.join(self.inputs)}; got {', '.join(feeds) or 'nothing'}.")
        batch: int | None = None
        for name, spec in self.inputs.items():
            batch, problem = _check(feeds[name], spec, batch)
            if problem:
                raise InvalidArgument(f"{self.stage} input {name}: {problem}.")
        return batch

    def _check_outputs(self, results: Sequence[Tensor], batch: int | None) -> dict[str, Tensor]:
        if len(results) != len(self.outputs):
            raise BackendFailed(f"{self.stage} returned {len(results)} tensors, not {len(self.outputs)}. {_REPORT}")
        named = dict(zip(self.outputs, results, strict=True))
        for name, spec in self.outputs.items():
            batch, problem = _check(named[name], spec, batch)
            if problem:
                raise BackendFailed(f"{self.stage} output {name}: {problem}. {_REPORT}")
            value = named[name]
            if spec.dtype == "float32" and isinstance(value, np.ndarray) and not np.isfinite(value).all():
                raise BackendFailed(f"{self.stage} output {name} holds NaN or infinite values. {_REPORT}")
        return named


_REPORT = "Run `s2f verify` on the bundle and `s2f doctor`; if both are content, please report it"


def lacks_memory(text: str) -> bool:
    """Whether a backend's message, which is all it tells, is about a lack of memory. An illegal access to it is not."""
    words = ("out of memory", "outofmemory", "insufficient memory", "failed to allocate", "could not be allocated")
    return any(word in text.lower() for word in words)


def _laid_out(value: Tensor) -> Tensor:
    return value if isinstance(value, Kept) else np.ascontiguousarray(value)


def _check(array: Tensor, spec: TensorSpec, batch: int | None) -> tuple[int | None, str]:
    """The batch size seen so far and what is wrong with `array`, empty if nothing is."""
    if not isinstance(array, (np.ndarray, Kept)):
        return batch, f"is {type(array).__name__}, not a numpy array"
    if array.dtype != spec.dtype:
        return batch, f"is {array.dtype}, not {spec.dtype}"
    wanted = tuple(array.shape[i] if dim == "batch" and i < array.ndim else dim for i, dim in enumerate(spec.shape))
    if array.shape != wanted or 0 in array.shape:
        return batch, f"has shape {list(array.shape)}, not {_shape(spec)}"
    if spec.shape[:1] == ("batch",):
        if batch is not None and array.shape[0] != batch:
            return batch, f"has batch {array.shape[0]} beside a batch of {batch}"
        batch = array.shape[0]
    return batch, ""


def _compare(stage: str, side: str, wanted: Mapping[str, TensorSpec], found: Sequence[TensorSpec]) -> None:
    """The graph must be what the manifest says, order aside. Raises BundleInvalid."""
    graph = {spec.name: spec for spec in found}
    if graph == dict(wanted):
        return
    names = sorted(name for name in {*graph, *wanted} if graph.get(name) != wanted.get(name))
    details = "; ".join(
        f"{name}: manifest {_tensor(wanted.get(name))}, graph {_tensor(graph.get(name))}" for name in names
    )
    raise BundleInvalid(f"The {side} of the {stage} graph are not those of the manifest: {details}. Export it again.")


def _tensor(spec: TensorSpec | None) -> str:
    return "none" if spec is None else f"{spec.dtype} {_shape(spec)}"


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join(str(dim) for dim in spec.shape) + "]"
