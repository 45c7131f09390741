"""What the ONNX parser of each TensorRT release takes, and which layer it makes of an operator."""

from __future__ import annotations

import onnx
from onnx import TensorProto

OPSETS = {(8, 6): 17, (10, 3): 20, (10, 13): 23, (10, 16): 24, (11, 4): 24}

_OPERATORS = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip
Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum
Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool
GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Identity If
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop
LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero
Not OneHot Or PRelu Pad Pow QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round Scan ScatterElements ScatterND Selu Shape Shrink
Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_OPERATORS.split())
"""What 8.6's parser knows (its published table; most names also stand in its library). Later parsers know more."""

_LAYERS = {
    "ACTIVATION": "Clip Elu HardSigmoid LeakyRelu Relu Selu Sigmoid Softplus Softsign Tanh ThresholdedRelu",
    "CAST": "Cast",
    "CONCATENATION": "Concat",
    "CONSTANT": "Constant",
    "CONVOLUTION": "Conv",
    "DECONVOLUTION": "ConvTranspose",
    "DEQUANTIZE": "DequantizeLinear",
    "EINSUM": "Einsum",
    "ELEMENTWISE": "Add And Div Equal Greater Less Max Min Mod Mul Or Pow Sub Sum Xor",
    "GATHER": "Gather GatherElements GatherND",
    "IDENTITY": "Dropout Identity",
    "MATRIX_MULTIPLY": "Gemm MatMul",
    "NORMALIZATION": "GroupNormalization InstanceNormalization LayerNormalization",
    "POOLING": "AveragePool MaxPool",
    "QUANTIZE": "QuantizeLinear",
    "REDUCE": "GlobalAveragePool GlobalMaxPool ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum",
    "RESIZE": "Resize",
    "SCALE": "BatchNormalization",
    "SELECT": "Where",
    "SHAPE": "Shape",
    "SHUFFLE": "DepthToSpace Flatten Reshape SpaceToDepth Squeeze Transpose Unsqueeze",
    "SLICE": "Expand Pad Slice Split",
    "SOFTMAX": "LogSoftmax Softmax",
    "TOPK": "ArgMax ArgMin TopK",
    "UNARY": "Abs Ceil Cos Erf Exp Floor IsInf Log Neg Not Reciprocal Round Sign Sin Sqrt",
}
LAYERS = {operator: layer for layer, operators in _LAYERS.items() for operator in operators.split()}

Refusal = tuple[str, str, int]
TAKEN: Refusal = ("", "", -1)


def refusal(model: onnx.ModelProto, release: tuple[int, int], also: tuple[str, ...]) -> Refusal:
    """(error code, text, node) of what the parser refuses first; the code is empty if it takes the graph."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset > OPSETS[release]:
        return "UNSUPPORTED_GRAPH", f"opset {opset} is newer than {OPSETS[release]}, the newest known", -1
    for index, node in enumerate(model.graph.node):
        if not takes(node.op_type, also) or node.domain not in ("", "ai.onnx"):
            text = f"No importer registered for op: {node.op_type}. Attempting to import as plugin. Plugin not found."
            return "UNSUPPORTED_NODE", text, index
    return _border_refusal(model) if release < (10, 0) else TAKEN


def takes(operator: str, also: tuple[str, ...] = ()) -> bool:
    """Whether the parser knows an operator; `also` are those a test wants refused."""
    return operator in OPERATORS and operator not in also


def _border_refusal(model: onnx.ModelProto) -> Refusal:
    """8.6 takes unsigned bytes only at the border of a network, cast at once, no doubles anywhere, and integers of
    eight bits as zero points only.
    """
    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    border = {name for name, kind in kinds.items() if kind == TensorProto.UINT8}
    for index, node in enumerate(graph.node):
        touched = sorted(border & {*node.input, *node.output})
        if touched and node.op_type != "Cast":
            return "UNSUPPORTED_NODE", f"{node.op_type} works on UINT8 {touched[0]}, only Cast may", index
        to = next((a.i for a in node.attribute if node.op_type == "Cast" and a.name == "to"), None)
        if to == TensorProto.DOUBLE or (to == TensorProto.UINT8 and node.output[0] not in border):
            return "UNSUPPORTED_NODE", f"{node.output[0]} is cast to {TensorProto.DataType.Name(to)}", index
    narrow = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}
    for index, node in enumerate(graph.node):
        if narrow.intersection(node.input[:2]):
            return "UNSUPPORTED_NODE", f"{node.input[0]}: invalid weights type of Int8", index
    doubles = [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.DOUBLE]
    return ("INVALID_GRAPH", f"{doubles[0]} is DOUBLE", -1) if doubles else TAKEN
