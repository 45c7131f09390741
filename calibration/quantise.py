"""Q/DQ graphs from a float graph, a plan and ranges: two families, because two kinds of machine want different graphs.

| family          | activations               | weights          | what is quantised                          |
|-----------------|---------------------------|------------------|--------------------------------------------|
| `int8-x86`      | uint8 with a zero point   | int8 per channel | inputs and results of layers, and sums     |
| `int8-tensorrt` | int8, zero point 0        | int8 per channel | inputs of layers, and what a sum adds them |

VNNI multiplies unsigned by signed, and TensorRT takes nothing but zero points of 0. TensorRT fuses what follows a layer
into it, up to the sum with a residual that is quantised, and would lose that where a layer's output is quantised.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from calibration.layers import SMALL, Layer, channel_axis, weight_of
from calibration.ranges import Range
from export import simplify

PRODUCER = "s2f-edge"
TINY = 1e-8  # a range this narrow is as good as none: its scale would be a denormal


def quantise(
    model: ModelProto, family: str, layers: Sequence[Layer], chosen: Collection[str], ranges: Mapping[str, Range]
) -> ModelProto:
    """A copy of `model` in which the layers named in `chosen` compute in eight bits.

    `layers`: those of this graph; `ranges`: lowest and highest value of each activation, by name. Layers whose range is
    nothing but zeros stay as they are. Other weights are stored in eight bits or as float16 where that loses nothing.
    """
    work = ModelProto()
    work.CopyFrom(model)
    names = {layer.name for layer in layers if layer.name in chosen and spans(ranges.get(layer.source))}
    taken = [node for node in work.graph.node if node.name in names]
    work = _for_x86(work, taken, ranges) if family == "int8-x86" else _for_tensorrt(work, taken, ranges)
    simplify.remove_unused(work)
    simplify.store_int8(work, _on_the_grid(work, layers))
    simplify.store_float16(work, 256)
    simplify.strip_metadata(work, model.graph.name, PRODUCER)
    return work


def residual_sums(nodes: Sequence[NodeProto], taken: Sequence[NodeProto], known: Collection[str]) -> list[NodeProto]:
    """Sums of two activations of which at least one comes straight from a quantised layer."""
    results = {node.output[0] for node in taken}
    return [
        node
        for node in nodes
        if node.op_type == "Add" and results.intersection(node.input) and not set(node.input).intersection(known)
    ]


def _for_x86(model: ModelProto, taken: Sequence[NodeProto], ranges: Mapping[str, Range]) -> ModelProto:
    """ONNX Runtime's own quantiser, told what to do: it removes the ReLUs that a zero point of 0 makes needless."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantType

    known = {tensor.name for tensor in model.graph.initializer}
    results = {node.output[0] for node in taken}
    sums = residual_sums(model.graph.node, taken, known)
    results |= {node.output[0] for node in sums}
    relus = [node for node in model.graph.node if node.op_type == "Relu" and node.input[0] in results]
    names = [node.name for node in (*taken, *sums, *relus)]
    spans = TensorsData(
        CalibrationMethod.MinMax, {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    )
    kinds = sorted({node.op_type for node in (*taken, *sums, *relus)})
    options = {"ActivationSymmetric": False, "WeightSymmetric": True}
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    quantiser = QDQQuantizer(model, True, False, QuantType.QInt8, QuantType.QUInt8, spans, names, [], kinds, options)
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    done: ModelProto = quantiser.model.model
    return done


def _for_tensorrt(model: ModelProto, taken: Sequence[NodeProto], ranges: Mapping[str, Range]) -> ModelProto:
    """Symmetric Q/DQ before each layer, on its weight, and on the other side of the sum it goes into."""
    known = {tensor.name for tensor in model.graph.initializer}
    results = {node.output[0] for node in taken}
    before: dict[str, list[NodeProto]] = {}
    made: dict[str, str] = {}
    sums = {node.output[0] for node in residual_sums(model.graph.node, taken, known)}
    for node in model.graph.node:  # in its order, so that a pair stands before all that read it
        if node.output[0] not in results | sums:
            continue
        side = 1 if node.output[0] in sums and node.input[1] not in results else 0
        name = node.input[side]
        if node.output[0] in sums and (name in results or not spans(ranges.get(name))):
            continue
        ahead = before.setdefault(node.output[0], [])
        if name not in made:
            made[name] = _pair(model, name, ranges[name], ahead)
        node.input[side] = made[name]
        if node.output[0] in results:
            ahead.append(_weight(model, node))
    nodes = [one for node in model.graph.node for one in (*before.get(node.output[0], []), node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _pair(model: ModelProto, name: str, span: Range, nodes: list[NodeProto]) -> str:
    """Q and DQ of an activation, with one scale for all of it; returns the name of what comes out."""
    scale = np.float32(max(abs(span[0]), abs(span[1])) / 127.0)
    _constants(model, name, np.array(scale), np.array(0, np.int8))
    numbers = [f"{name}_scale_of_int8", f"{name}_zero_point"]
    nodes.append(helper.make_node("QuantizeLinear", [name, *numbers], [f"{name}_int8"], name=f"{name}_quantise"))
    back = f"{name}_dequantised"
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}_int8", *numbers], [back], name=f"{name}_dequantise"))
    return back


def _weight(model: ModelProto, node: NodeProto) -> NodeProto:
    """The weight of a layer as int8 with a scale per output channel; `node` reads it through the DQ returned."""
    name = node.input[1]
    values = weight_of(model, name)
    axis = channel_axis(node, values.ndim)
    integers, scale = simplify.round_int8(values, axis)
    own = f"{node.name}_weight"
    model.graph.initializer.append(numpy_helper.from_array(integers, f"{own}_int8"))
    _constants(model, own, scale.reshape(-1), np.zeros(scale.size, np.int8))
    node.input[1] = f"{own}_dequantised"
    inputs = [f"{own}_int8", f"{own}_scale_of_int8", f"{own}_zero_point"]
    return helper.make_node("DequantizeLinear", inputs, [node.input[1]], name=f"{own}_dequantise", axis=axis)


def _constants(model: ModelProto, name: str, scale: Any, zero: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale_of_int8"))
    model.graph.initializer.append(numpy_helper.from_array(zero, f"{name}_zero_point"))


def _on_the_grid(model: ModelProto, layers: Sequence[Layer]) -> dict[str, int]:
    """The weights that are a multiple of 1/127 of the largest of their channel, but for rounding in float32."""
    found = {}
    for layer in layers:
        values = next((numpy_helper.to_array(t) for t in model.graph.initializer if t.name == layer.weight), None)
        if values is not None and values.dtype == np.float32 and values.size >= SMALL:
            integers, scale = simplify.round_int8(values, layer.axis)
            if np.allclose(integers * scale, values, rtol=1e-5, atol=1e-6 * float(np.abs(values).max())):
                found[layer.weight] = layer.axis
    return found


def spans(span: Range | None) -> bool:
    """Whether a range holds something but zero, or as good as that."""
    return span is not None and max(abs(span[0]), abs(span[1])) > TINY
