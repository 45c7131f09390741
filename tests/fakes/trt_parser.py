"""Behaviours of TensorRT's ONNX parser: what a release refuses, and the network it makes of the rest."""

from __future__ import annotations

import os
from typing import Any

import onnx

from .surface import make
from .trt_common import FROM_ONNX, report, require_logger
from .trt_operators import LAYERS, refusal, takes


class OnnxParser:
    """trt.OnnxParser."""

    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network
        self._logger = require_logger(self, logger)
        self._errors: list[Any] = []
        self._set: set[str] = set()

    def parse(self, model: Any, path: str | None = None) -> bool:
        """False with errors where this release would refuse the graph."""
        if isinstance(model, str):
            raise TypeError("parse(): incompatible function arguments: a buffer is needed, not str")
        try:
            graph = onnx.load_model_from_string(bytes(model))
        except Exception as error:  # noqa: BLE001 - protobuf's own classes
            return self._refuse("MODEL_DESERIALIZE_FAILED", f"Failed to parse the model: {error}", -1)
        if self._network._implicit:
            text = "This version of the ONNX parser only supports TensorRT INetworkDefinitions with an explicit batch"
            return self._refuse("INVALID_VALUE", f"{text} dimension.", -1)
        code, text, node = refusal(graph, self._world.release, tuple(self._world.unsupported))
        if code:
            return self._refuse(code, text, node)
        self._fill(graph)
        return True

    def parse_from_file(self, model: str) -> bool:
        with open(os.fspath(model), "rb") as file:  # noqa: PTH123 - a path or a string
            return bool(type(self).parse(self, file.read()))

    def supports_operator(self, op_name: str) -> bool:
        return takes(op_name, tuple(self._world.unsupported))

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors.clear()

    def set_flag(self, flag: Any) -> None:
        self._set.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._set.discard(flag.name)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in self._set

    def _refuse(self, code: str, text: str, node: int) -> bool:
        self._errors.append(make(self._api.ParserError, code, text, node))
        report(self, self._logger, "ERROR", f"ModelImporter.cpp: {text}")
        return False

    def _fill(self, graph: onnx.ModelProto) -> None:
        network = self._network
        inferred = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
        tensors = self._tensors(inferred.graph)
        weights = {tensor.name for tensor in graph.graph.initializer}
        network._model = graph
        network._inputs = [tensors[value.name] for value in graph.graph.input if value.name not in weights]
        network._outputs = [tensors[value.name] for value in graph.graph.output]
        network._layers = [*self._constants(graph.graph, tensors), *self._nodes(graph.graph, tensors)]

    def _tensors(self, graph: onnx.GraphProto) -> dict[str, Any]:
        found: dict[str, Any] = {}
        narrow = self._world.release[0] < 10  # no 64-bit integers there
        for role, values in (("inner", graph.value_info), ("output", graph.output), ("input", graph.input)):
            for value in values:
                kind = value.type.tensor_type
                dims = tuple(int(d.dim_value) if d.HasField("dim_value") else -1 for d in kind.shape.dim)
                found[value.name] = self._tensor(value.name, kind.elem_type, dims, role, narrow)
        for weight in graph.initializer:
            found[weight.name] = self._tensor(weight.name, weight.data_type, tuple(weight.dims), "inner", narrow)
        return found

    def _tensor(self, name: str, kind: int, dims: tuple[int, ...], role: str, narrow: bool) -> Any:
        dtype = FROM_ONNX.get(kind, "UNKNOWN")
        return make(self._api.ITensor, name, "INT32" if narrow and dtype == "INT64" else dtype, dims, role)

    def _constants(self, graph: onnx.GraphProto, tensors: dict[str, Any]) -> list[Any]:
        used = {name for node in graph.node if not _takes_weights(node) for name in node.input}
        names = [weight.name for weight in graph.initializer if weight.name in used]
        return [make(self._api.ILayer, name, "CONSTANT", [], [tensors[name]]) for name in names]

    def _nodes(self, graph: onnx.GraphProto, tensors: dict[str, Any]) -> list[Any]:
        layers = []
        for i, node in enumerate(graph.node):
            kind = LAYERS.get(node.op_type, "ELEMENTWISE")
            kind = kind if hasattr(self._api.LayerType, kind) else "IDENTITY"
            inputs = [tensors[name] for name in node.input if name in tensors]
            outputs = [tensors[name] for name in node.output if name]
            name = node.name or f"(Unnamed Layer* {i}) [{kind.title()}]"
            layers.append(make(self._api.ILayer, name, kind, inputs, outputs))
        return layers


class ParserError:
    """trt.ParserError."""

    def _setup(self, code: str, text: str, node: int) -> None:
        self._code, self._text, self._node = code, text, node

    def code(self) -> Any:
        return getattr(self._api.ErrorCode, self._code)

    def desc(self) -> str:
        return self._text

    def node(self) -> int:
        return self._node

    def file(self) -> str:
        return "ModelImporter.cpp"

    def line(self) -> int:
        return 0

    def func(self) -> str:
        return "parse"

    def node_name(self) -> str:
        return ""

    def node_operator(self) -> str:
        return ""


def _takes_weights(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization")


PARSER: dict[str, Any] = {cls.__name__: cls for cls in (OnnxParser, ParserError)}
