"""SmoothQuant (Xiao et al. 2023, arXiv:2211.10438) for linears behind a layer norm: outliers move into the weights.

A linear reads x, whose channels differ in size, with one scale for all. Divided by s per channel they are alike, and
the weights' rows take s up: x/s · (s·W) is x·W. The division costs nothing: scale and shift of the norm absorb it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from calibration.layers import Layer, weight_of

ALPHA = 0.5
"""How much of the difficulty moves into the weights, 0…1 (equation 4); 0.5 is the paper's."""

Floats = NDArray[np.float32]


def smoothable(model: ModelProto, layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The outputs of layer norms that only layers to be quantised read, each with those layers, by name.

    A norm stays as it is where one of their weights is read by something else too.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    by_name = {layer.name: layer for layer in layers if layer.operator == "MatMul" and not layer.keep}
    found = {}
    for node in model.graph.node:
        if node.op_type != "LayerNormalization" or not known.issuperset(node.input[1:]):
            continue
        name = node.output[0]
        own = [by_name.get(reader.name) for reader in readers.get(name, [])]
        linears = [layer for layer in own if layer is not None]
        shared = any(by_name.get(reader.name) not in linears for one in linears for reader in readers[one.weight])
        if own and len(linears) == len(own) and name not in outputs and not shared:
            found[name] = linears
    return found


def smooth(model: ModelProto, groups: Mapping[str, Sequence[Layer]], columns: Mapping[str, Floats]) -> None:
    """Move outliers of each norm's output into the weights of the linears that read it, in place.

    `columns`: the largest magnitude of each channel of the output, float32 [K]; see equation 4 of the paper.
    """
    for node in model.graph.node:
        linears = groups.get(node.output[0]) if node.op_type == "LayerNormalization" else None
        if not linears:
            continue
        weights = {layer.weight: weight_of(model, layer.weight) for layer in linears}
        rows = np.max([np.abs(weight).max(axis=1) for weight in weights.values()], axis=0)
        factor = _factor(columns[node.output[0]], rows)
        for name, weight in weights.items():
            _replace(model, name, weight * factor[:, None])
        for index in range(1, len(node.input)):
            value = weight_of(model, node.input[index]) / factor
            own = f"{node.output[0]}_smooth_{index}"  # the norm's numbers may be shared with another
            model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), own))
            node.input[index] = own


def _factor(columns: Floats, rows: Floats) -> Floats:
    """s of equation 4: max|x|^α / max|w|^(1−α) per channel, 1 where either is nothing."""
    usable = (columns > 0) & (rows > 0)
    factor = np.ones(len(columns), np.float64)
    factor[usable] = columns[usable].astype(np.float64) ** ALPHA / rows[usable].astype(np.float64) ** (1 - ALPHA)
    return factor.astype(np.float32)


def _replace(model: ModelProto, name: str, value: Floats) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
