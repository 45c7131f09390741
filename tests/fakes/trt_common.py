"""What the build side and the run side of the fake TensorRT share: loggers, plans, shapes, types."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx

MAGIC = b"ftrt-fake"
ALIGNMENT = 256  # what TensorRT asks of the address of a tensor and of a context's memory

FROM_ONNX = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.UINT8: "UINT8",
}
SIZES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "INT32": 4, "INT64": 8, "BOOL": 1, "UINT8": 1, "FP8": 1}
NUMPY = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}


class ILogger:
    """Base of a user's logger."""

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise RuntimeError('Tried to call pure virtual function "ILogger::log"')


class Logger(ILogger):
    """The logger that prints; here it is quiet, world.log has the text."""

    def __init__(self, min_severity: Any = None) -> None:
        self._minimum = min_severity or self._api.ILogger.Severity.WARNING

    @property
    def min_severity(self) -> Any:
        return self._minimum

    @min_severity.setter
    def min_severity(self, value: Any) -> None:
        self._minimum = value

    def log(self, severity: Any, msg: str) -> None:
        pass


def report(owner: Any, logger: Any, severity: str, text: str) -> None:
    """Tell the user's logger, and note it in world.log."""
    owner._world.log.append(f"{severity}: {text}")
    logger.log(getattr(owner._api.ILogger.Severity, severity), text)


def require_logger(owner: Any, logger: Any) -> Any:
    """The logger, or pybind11's refusal of anything else."""
    if not isinstance(logger, owner._api.ILogger):
        raise TypeError(f"__init__(): incompatible constructor arguments. Invoked with: {logger!r}")
    return logger


class Dims:
    """Like a tuple, but equal only to tuples and lists: comparing two Dims raises TypeError."""

    MAX_DIMS = 8

    def __init__(self, shape: Sequence[int] = ()) -> None:
        self._shape = tuple(int(size) for size in shape)

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and not -len(self._shape) <= index < len(self._shape):
            raise IndexError("Out of bounds")
        return self._shape[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | list):
            raise TypeError("__eq__(): incompatible function arguments: Dims equals a list or a tuple")
        return self._shape == tuple(other)

    __hash__ = None

    def __repr__(self) -> str:
        return repr(self._shape)


class DataTypeMembers:
    """itemsize of trt.DataType."""

    @property
    def itemsize(self) -> int | None:
        return SIZES.get(self.name)


class IHostMemory(bytearray):
    """Memory of the library: a buffer without a length of its own, as len() of the real one fails."""

    def _setup(self) -> None:
        pass

    @property
    def nbytes(self) -> int:
        return memoryview(self).nbytes

    @property
    def dtype(self) -> Any:
        return self._api.DataType.INT8

    def __len__(self) -> int:
        raise TypeError("object of type 'IHostMemory' has no len()")

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("'IHostMemory' object is not subscriptable")

    def __iter__(self) -> Any:
        raise TypeError("'IHostMemory' object is not iterable")

    def __bool__(self) -> bool:
        return True

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in ("nbytes", "dtype"):
            raise AttributeError(f"'IHostMemory' object has no attribute {name!r}")
        return object.__getattribute__(self, name)


def host_memory(owner: Any, data: bytes) -> Any:
    """An IHostMemory of the module that `owner` belongs to."""
    cls = owner._api.IHostMemory
    made = bytearray.__new__(cls)
    bytearray.__init__(made, data)
    return made


@dataclasses.dataclass(frozen=True)
class Plan:
    """What stands in a fake plan: what it was built for, with, and from."""

    version: str
    capability: tuple[int, int]
    flags: tuple[str, ...]
    settings: dict[str, Any]
    onnx: bytes

    def to_bytes(self, padding: int = 0) -> bytes:
        """Magic, header as one line of JSON, the graph, padding."""
        header = {
            "version": self.version,
            "capability": list(self.capability),
            "flags": list(self.flags),
            "settings": self.settings,
            "bytes": len(self.onnx),
            "sha256": hashlib.sha256(self.onnx).hexdigest(),
            "padding": padding,
        }
        return MAGIC + json.dumps(header).encode() + b"\n" + self.onnx + bytes(padding)

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Raises ValueError for anything but a whole plan."""
        head, newline, rest = data.partition(b"\n")
        if not head.startswith(MAGIC) or not newline:
            raise ValueError("magic tag does not match")
        header = json.loads(head[len(MAGIC) :])
        graph = rest[: header["bytes"]]
        whole = len(rest) == header["bytes"] + header["padding"]
        if not whole or hashlib.sha256(graph).hexdigest() != header["sha256"]:
            raise ValueError("plan is truncated or damaged")
        capability = tuple(header["capability"])
        return cls(header["version"], capability, tuple(header["flags"]), header["settings"], graph)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A graph's border: type by TensorRT's name, shape with -1 where free."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: onnx.ValueInfoProto) -> Tensor:
        kind = value.type.tensor_type
        sizes = (int(d.dim_value) if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        return cls(value.name, FROM_ONNX.get(kind.elem_type, "UNKNOWN"), tuple(sizes))


def volume(world: Any, iterable: Sequence[int]) -> int:
    """trt.volume: 1 for no dimension."""
    return int(np.prod([int(size) for size in iterable], dtype=np.int64))


def nptype(world: Any, trt_type: Any) -> Any:
    """trt.nptype."""
    if trt_type.name not in NUMPY:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return NUMPY[trt_type.name]


COMMON: dict[str, Any] = {
    "ILogger": ILogger,
    "Logger": Logger,
    "Dims": Dims,
    "DataType.members": DataTypeMembers,
    "IHostMemory": IHostMemory,
    "volume": volume,
    "nptype": nptype,
}
