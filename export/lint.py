"""What TensorRT 8.6's ONNX parser, the oldest we serve, or our own rules would refuse in a graph; needs no TensorRT.

A clean graph is strongly typed and of static shapes: its precision needs no builder flag, its shapes no optimisation
profile, and a CUDA graph can hold it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

from export.simplify import constants, element_types, static_shapes

OPSET = 17
MAX_IR_VERSION = 8  # that of ONNX 1.12, which brought opset 17
MAX_RANK = 8  # nvinfer1::Dims::MAX_DIMS

# The operators with a Y in docs/operators.md of github.com/onnx/onnx-tensorrt for TensorRT 8.5 (opset 17), and the two
# of opset 17 that 8.6 adds: IsInf and LayerNormalization. The importers registered in libnvonnxparser.so of TensorRT
# 8.6.0 are the same, GroupNormalization (opset 18) and TensorRT's own operators apart.
_OPERATORS = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
    Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu
    Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish Identity If ImageScaler InstanceNormalization
    IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul
    Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad
    ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND
    Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum
    Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
PARSER_OPERATORS = frozenset(_OPERATORS.split())

# Importable, and still not for us.
REFUSED = {
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        "TensorRT ignores its seed; noise is an input",
    ),
    **dict.fromkeys(("Loop", "If", "Scan"), "control flow keeps a graph out of CUDA graph capture; unroll it"),
    **dict.fromkeys(("NonZero", "NonMaxSuppression"), "the size of its output depends on the data"),
    "InstanceNormalization": "8.6 makes it a plugin that needs cuDNN; write it as LayerNormalization",
}

# Inputs the parser wants as weights, and those that would otherwise make a shape or a layout depend on data.
CONSTANT_INPUTS = {
    "BatchNormalization": (1, 2, 3, 4),
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "Conv": (2,),
    "ConvTranspose": (2,),
    "CumSum": (1,),
    "DequantizeLinear": (1, 2),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 2, 3),
    "QuantizeLinear": (1, 2),
    "Range": (0, 1, 2),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}

INPUT_TYPES = {TensorProto.FLOAT, TensorProto.INT32}
OUTPUT_TYPES = INPUT_TYPES | {TensorProto.UINT8}
INNER_TYPES = INPUT_TYPES | {TensorProto.FLOAT16, TensorProto.INT8, TensorProto.BOOL}
WEIGHT_TYPES = INNER_TYPES | {TensorProto.INT64}  # the parser makes int32 of them


def lint(data: bytes) -> list[str]:
    """The problems of an ONNX file, a sentence each; none means that TensorRT 8.6 and later should take it."""
    try:
        model = onnx.load_from_string(data)
    except DecodeError as error:
        return [f"The file is not an ONNX model: {error}."]
    problems = [*_versions(model), *_operators(model), *_weights(model)]
    if problems:  # what comes next would repeat them in onnx's words
        return problems
    try:
        onnx.checker.check_model(model, full_check=True)  # also that an operator's inputs have one type
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [f"The graph is not valid ONNX: {' '.join(str(error).split())}"]
    return [*_dimensions(inferred), *_types(inferred), *_constants(model), *_quantisation(model), *_details(inferred)]


def _versions(model: ModelProto) -> Iterator[str]:
    opsets = [(o.domain, o.version) for o in model.opset_import]
    if opsets != [("", OPSET)]:
        found = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in opsets)
        yield f"The graph needs opsets {found or 'none'}; it must be {OPSET} of ai.onnx and nothing else."
    if model.ir_version > MAX_IR_VERSION:
        yield f"The file has IR version {model.ir_version}; the parser reads up to {MAX_IR_VERSION}."
    if model.functions:
        yield f"The file defines functions of its own, such as {model.functions[0].name}; write them out."


def _operators(model: ModelProto) -> Iterator[str]:
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            yield f"{_name(node)} is of the domain {node.domain}, which the parser does not know."
        elif node.op_type not in PARSER_OPERATORS:
            yield f"{_name(node)} is not among the operators of TensorRT 8.6's parser."
        elif node.op_type in REFUSED:
            yield f"{_name(node)}: {REFUSED[node.op_type]}."


def _weights(model: ModelProto) -> Iterator[str]:
    """Everything inside the file, finite, of a type TensorRT has."""
    inside = [a.t for node in model.graph.node for a in node.attribute if a.type == AttributeProto.TENSOR]
    for tensor in (*model.graph.initializer, *inside):
        name = tensor.name or "of a Constant"
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            yield f"The weight {name} lies outside the file; save the model without external data."
        elif tensor.data_type not in WEIGHT_TYPES:
            yield f"The weight {name} is {_type_name(tensor.data_type)}, which TensorRT 8.6 does not have."
        elif not np.isfinite(numpy_helper.to_array(tensor).astype(np.float64)).all():
            yield f"The weight {name} holds NaN or infinity."
    for sparse in model.graph.sparse_initializer:
        yield f"The weight {sparse.values.name} is sparse, which the parser does not read."


def _dimensions(inferred: ModelProto) -> Iterator[str]:
    """A positive number for every dimension of every tensor."""
    graph = inferred.graph
    infos = {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}
    for node in graph.node:
        for name in node.output:
            known = name in infos and infos[name].type.tensor_type.HasField("shape")
            if name and not known:
                yield f"{_name(node)}: the shape of its output {name} is unknown before it runs."
    shapes = {name: info.type.tensor_type.shape.dim for name, info in infos.items()}
    for name, dims in shapes.items():
        sizes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]
        if any(not isinstance(size, int) or size < 1 for size in sizes):
            yield f"The tensor {name} has the shape {sizes}; every dimension must be a number above 0."
        if len(sizes) > MAX_RANK:
            yield f"The tensor {name} has {len(sizes)} dimensions; TensorRT knows up to {MAX_RANK}."
    for tensor in graph.initializer:
        if 0 in tensor.dims:
            yield f"The weight {tensor.name} has the shape {list(tensor.dims)}; every dimension must be above 0."


def _types(inferred: ModelProto) -> Iterator[str]:
    """float32 and int32 at the borders; uint8 as an output and nowhere else (the parser's rule of 8.6)."""
    graph = inferred.graph
    types = element_types(inferred)
    outputs = {value.name for value in graph.output}
    for side, values, allowed in (("input", graph.input, INPUT_TYPES), ("output", graph.output, OUTPUT_TYPES)):
        for value in values:
            if types[value.name] not in allowed:
                names = ", ".join(sorted(_type_name(kind) for kind in allowed))
                yield f"The {side} {value.name} is {_type_name(types[value.name])}; an {side} may be {names}."
    for node in graph.node:
        for name in node.output:
            kind = types.get(name)
            if name in outputs and kind == TensorProto.UINT8 and node.op_type != "Cast":
                yield f"{_name(node)} makes the uint8 output {name}; only a Cast may, as the last node."
            elif name not in outputs and kind == TensorProto.UINT8:
                yield f"{_name(node)} makes the uint8 tensor {name}, which is no output; uint8 is for outputs only."
            elif name not in outputs and kind not in INNER_TYPES:
                yield f"{_name(node)} makes {name} of type {_type_name(kind)}, which TensorRT 8.6 does not have."


def _constants(model: ModelProto) -> Iterator[str]:
    known = {tensor.name for tensor in model.graph.initializer} | {
        name for node in model.graph.node if node.op_type == "Constant" for name in node.output
    }
    for node in model.graph.node:
        for index in CONSTANT_INPUTS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            if name and name not in known:
                yield f"{_name(node)}: its input {name} is computed; it must be a constant."


def _quantisation(model: ModelProto) -> Iterator[str]:
    """int8 and symmetric; without a zero point ONNX means uint8. A layer has both of its sides in int8 or neither."""
    known = constants(model)
    scaled = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm") and len(scaled.intersection(node.input[:2])) == 1:
            alone = next(name for name in node.input[:2] if name in scaled)
            yield f"{_name(node)} reads {alone} in int8 and its other side not, so it computes in float."
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero = known.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None:
            yield f"{_name(node)} has no constant zero point, so its integers are not int8."
        elif zero.dtype != np.int8 or zero.any():
            worst = zero.reshape(-1)[np.argmax(zero != 0)]
            yield f"{_name(node)} has the zero point {worst} of type {zero.dtype}; it must be int8 and 0."


def _details(inferred: ModelProto) -> Iterator[str]:
    """Restrictions of single importers in 8.6 that a graph of ours could meet."""
    shapes = static_shapes(inferred)
    for node in inferred.graph.node:
        ranks = [len(shapes[name]) for name in node.input if name in shapes]
        if node.op_type == "Gemm" and ranks[:2] != [2, 2]:
            yield f"{_name(node)} multiplies tensors of ranks {ranks[:2]}; the parser takes matrices only."
        if node.op_type in ("MaxPool", "LayerNormalization") and any(node.output[1:]):
            yield f"{_name(node)} has more than one output; TensorRT gives the first."


def _name(node: NodeProto) -> str:
    return f"The {node.op_type} node {node.name or f'that makes {node.output[0]}'}"


def _type_name(kind: int | None) -> str:
    return str(TensorProto.DataType.Name(kind or 0)).lower()
