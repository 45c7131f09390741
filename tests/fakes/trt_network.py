"""Behaviours of TensorRT's network: tensors and layers as the ONNX parser made them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

FLOATS = frozenset({"FLOAT", "HALF", "BF16", "INT8", "FP8"})
"""The types a layer may be told to compute in."""


class INetworkDefinition:
    """trt.INetworkDefinition."""

    def _setup(self, builder: Any, flags: tuple[str, ...]) -> None:
        self._builder = builder
        self._flags = flags
        self._name = "Unnamed Network 0"
        self._model: onnx.ModelProto | None = None
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._layers: list[Any] = []

    def _serialised(self) -> bytes:
        """The graph as the plan keeps it."""
        return b"" if self._model is None else self._model.SerializeToString(deterministic=True)

    @property
    def builder(self) -> Any:
        return self._builder

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = str(value)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def _implicit(self) -> bool:
        return self._world.release[0] < 10 and "EXPLICIT_BATCH" not in self._flags

    @property
    def has_implicit_batch_dimension(self) -> bool:
        return self._implicit

    @property
    def flags(self) -> int:
        known = self._api.NetworkDefinitionCreationFlag.__members__
        return sum(1 << int(flag) for name, flag in known.items() if name in self._flags)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in self._flags

    def get_input(self, index: int) -> Any:
        return self._inputs[index] if 0 <= index < len(self._inputs) else None

    def get_output(self, index: int) -> Any:
        return self._outputs[index] if 0 <= index < len(self._outputs) else None

    def get_layer(self, index: int) -> Any:
        return self._layers[index] if 0 <= index < len(self._layers) else None

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self._layers):
            raise IndexError("Out of bounds")
        return self._layers[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._layers)


class ITensor:
    """trt.ITensor."""

    def _setup(self, name: str, dtype: str, dims: tuple[int, ...], role: str) -> None:
        self._name = name
        self._dtype = dtype
        self._dims = dims
        self._role = role

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = str(value)

    @property
    def dtype(self) -> Any:
        return getattr(self._api.DataType, self._dtype)

    @dtype.setter
    def dtype(self, value: Any) -> None:
        if self._role == "inner":
            raise self._world.violate(f"dtype of {self._name} set, which is neither input nor output of the network")
        raise NotImplementedError("the fake does not change the type of a network's input or output: add it")

    @property
    def shape(self) -> Any:
        return self._api.Dims(self._dims)

    @property
    def is_network_input(self) -> bool:
        return self._role == "input"

    @property
    def is_network_output(self) -> bool:
        return self._role == "output"

    @property
    def is_shape_tensor(self) -> bool:
        return False

    @property
    def is_execution_tensor(self) -> bool:
        return True


class ILayer:
    """trt.ILayer. The parser makes one of each node, and a constant of each initialiser that is no layer's weights."""

    def _setup(self, name: str, kind: str, inputs: list[Any], outputs: list[Any]) -> None:
        self._layer_name = name
        self._kind = kind
        self._inputs = inputs
        self._outputs = outputs
        self._precision: str | None = None
        self._types: dict[int, str] = {}
        self._metadata = ""

    def _asked(self) -> tuple[str, str | None, list[str | None]]:
        return self._layer_name, self._precision, [self._types.get(i) for i in range(len(self._outputs))]

    @property
    def name(self) -> str:
        return self._layer_name

    @name.setter
    def name(self, value: str) -> None:
        self._layer_name = str(value)

    @property
    def metadata(self) -> str:
        return self._metadata

    @metadata.setter
    def metadata(self, value: str) -> None:
        self._metadata = str(value)

    @property
    def type(self) -> Any:
        return getattr(self._api.LayerType, self._kind)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_input(self, index: int) -> Any:
        return self._inputs[index] if 0 <= index < len(self._inputs) else None

    def get_output(self, index: int) -> Any:
        return self._outputs[index] if 0 <= index < len(self._outputs) else None

    def get_output_type(self, index: int) -> Any:
        return getattr(self._api.DataType, self._types.get(index, self._outputs[index]._dtype))

    @property
    def precision(self) -> Any:
        return getattr(self._api.DataType, self._precision or "FLOAT")

    @precision.setter
    def precision(self, value: Any) -> None:
        self._precision = self._data_type(value)

    @property
    def precision_is_set(self) -> bool:
        return self._precision is not None

    def reset_precision(self) -> None:
        self._precision = None

    def set_output_type(self, index: int, dtype: Any) -> None:
        self._types[index] = self._data_type(dtype)

    def output_type_is_set(self, index: int) -> bool:
        return index in self._types

    def reset_output_type(self, index: int) -> None:
        self._types.pop(index, None)

    def _data_type(self, value: Any) -> str:
        if not isinstance(value, self._api.DataType):
            raise TypeError(f"incompatible function arguments: {value!r} is no DataType")
        found = {tensor._dtype for tensor in [*self._inputs, *self._outputs]}
        if value.name in FLOATS and not found & FLOATS and self._kind != "CAST":
            raise self._world.violate(f"{value.name} asked of layer {self._layer_name}, whose tensors are {found}")
        return str(value.name)


NETWORK: dict[str, Any] = {cls.__name__: cls for cls in (INetworkDefinition, ITensor, ILayer)}
