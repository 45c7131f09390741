"""Graph clean-up after torch.onnx: constants folded, no-ops dropped, weights stored small, nothing about this machine.

All functions change the model in place.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[np.generic]
Model = ModelProto
MAX_FOLDED = 1 << 16  # elements; a larger result would trade file size for little time
NOTHING = 1e-30  # a channel of weights no larger is zero: its scale would be a denormal or zero itself
NEVER_FOLDED = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}
NEVER_FOLDED |= {"QuantizeLinear", "DequantizeLinear"}  # a weight in eight bits is to stay one
BATCHED = {"Expand", "Tile", "ConstantOfShape"}  # of floats: would put the trace's batch into the data


def fold_constants(model: Model) -> None:
    """Evaluate what depends on constants and static shapes only, until nothing changes; then drop what is unused."""
    _constants_to_initialisers(model)
    while True:
        del model.graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        changed = _fold_once(model, static_shapes(inferred))
        changed |= drop_no_ops(model, element_types(inferred))
        if not changed:
            break
    _spell_out_reshapes(model, static_shapes(inferred))
    remove_unused(model)


def store_float16(model: Model, threshold: int) -> None:
    """Keep float32 constants of at least `threshold` elements as float16 with a Cast, wherever that loses nothing.

    Runtimes fold the Cast when the session is made; the file is half as large.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < threshold:
            continue
        half = round_float16(numpy_helper.to_array(tensor))
        if half is None:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"{name}_widen", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def store_int8(model: Model, axes: Mapping[str, int]) -> None:
    """Keep float32 weights as int8 and one scale per channel: rounded to 255 levels, the largest of a channel is 127.

    `axes`: the weights by name, with the axis of their channels. Runtimes fold the Cast and the Mul when the session is
    made; the file is a quarter as large. Weights rounded before keep their integers, so this loses something once only.
    """
    widened = []
    for tensor in model.graph.initializer:
        if tensor.name not in axes:
            continue
        name, integers, scale = tensor.name, *round_int8(numpy_helper.to_array(tensor), axes[tensor.name])
        tensor.CopyFrom(numpy_helper.from_array(integers, f"{name}_int8"))
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        widened.append(helper.make_node("Cast", [tensor.name], [f"{name}_units"], name=f"{name}_widen", to=1))
        widened.append(helper.make_node("Mul", [f"{name}_units", f"{name}_scale"], [name], name=f"{name}_scaled"))
    nodes = [*widened, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def round_int8(values: Array, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers −127…127 of the shape of `values` and a scale per index of `axis`, shaped to be multiplied with them."""
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    largest = np.abs(values.astype(np.float64)).max(axis=others, keepdims=True)
    scale = np.where(largest > NOTHING, largest / 127.0, 1.0).astype(np.float32)
    return np.clip(np.rint(values / scale), -127, 127).astype(np.int8), scale


def round_float16(values: Array) -> NDArray[np.float16] | None:
    """The float16 copy if it represents every value exactly, else None."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else None


def strip_metadata(model: Model, name: str, producer: str) -> None:
    """Leave nothing of the exporter in the file: no doc strings (source paths), no metadata, no inferred shapes."""
    model.producer_name, model.producer_version = producer.partition(" ")[::2]
    model.doc_string = model.graph.doc_string = model.domain = ""
    model.graph.name = name
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]


def constants(model: Model) -> dict[str, Array]:
    """The initialisers by name."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def remove_unused(model: Model) -> None:
    """Drop the nodes and initialisers that no output needs."""
    needed = {o.name for o in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    weights = [t for t in model.graph.initializer if t.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(weights)


def drop_no_ops(model: Model, types: dict[str, int]) -> bool:
    """Remove Identity, Cast to the same type and scaling by one. True if something went."""
    outputs = {o.name for o in model.graph.output}
    known = constants(model)
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.output[0] not in outputs and _does_nothing(node, known, types):
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return bool(renamed)


def _does_nothing(node: NodeProto, known: dict[str, Array], types: dict[str, int]) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type == "Cast":
        return bool(types.get(node.input[0]) == node.attribute[0].i)
    if node.op_type in ("Mul", "Div"):
        factor = known.get(node.input[1])
        return bool(factor is not None and factor.ndim == 0 and factor == 1)
    return False


def _constants_to_initialisers(model: Model) -> None:
    kept = []
    for node in model.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(value), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _fold_once(model: Model, shapes: dict[str, tuple[int, ...]]) -> bool:
    known = constants(model)
    kept = []
    changed = False
    for node in model.graph.node:
        values = _evaluate(node, known, shapes, model.opset_import)
        if values is None:
            kept.append(node)
            continue
        changed = True
        for name, value in zip(node.output, values, strict=True):
            known[name] = value
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return changed


def _spell_out_reshapes(model: Model, shapes: dict[str, tuple[int, ...]]) -> None:
    """Give every Reshape its whole target in numbers, so that the only -1 left later is the batch."""
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.output[0] in shapes:
            node.input[1] = f"{node.output[0]}_shape"
            add_constant(model, node.input[1], np.array(shapes[node.output[0]], np.int64))


def _evaluate(
    node: NodeProto, known: dict[str, Array], shapes: dict[str, tuple[int, ...]], opsets: object
) -> list[Array] | None:
    if node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
        return [np.array(shapes[node.input[0]], dtype=np.int64)]
    if node.op_type in NEVER_FOLDED or not all(name in known or name == "" for name in node.input):
        return None
    if any(int(np.prod(shapes.get(name, (MAX_FOLDED + 1,)))) > MAX_FOLDED for name in node.output):
        return None
    if node.op_type in BATCHED and any(known[name].dtype.kind == "f" for name in node.input):
        return None
    names = sorted({name for name in node.input if name})
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(known[n].dtype), known[n].shape) for n in names
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    alone = helper.make_model(helper.make_graph([node], "fold", inputs, outputs), opset_imports=list(opsets))  # type: ignore[call-overload]
    return [np.asarray(v) for v in ReferenceEvaluator(alone).run(None, {n: known[n] for n in names})]


def static_shapes(inferred: Model) -> dict[str, tuple[int, ...]]:
    """The shapes shape inference found, where they are all numbers."""
    shapes = {t.name: tuple(t.dims) for t in inferred.graph.initializer}
    for info in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[info.name] = tuple(d.dim_value for d in dims)
    return shapes


def element_types(inferred: Model) -> dict[str, int]:
    """The element type of every tensor of a model whose shapes were inferred."""
    types = {t.name: t.data_type for t in inferred.graph.initializer}
    infos = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return types | {info.name: info.type.tensor_type.elem_type for info in infos}


def add_constant(model: Model, name: str, value: Array) -> None:
    """Add an initialiser unless one of that name is there."""
    if all(t.name != name for t in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
