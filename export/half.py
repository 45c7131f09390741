"""From float32 to mixed precision, written into the graph as Casts: float16 for the work, float32 for what is delicate.

| float16                                   | why                                                                     |
|-------------------------------------------|-------------------------------------------------------------------------|
| Conv, ConvTranspose, MatMul, Gemm         | nearly all of the arithmetic, and all of the large weights              |
| elementwise, layout and norm operators    | only where all they read is float16: no Casts between two convolutions  |

Everything else stays float32, above all:

| float32                                   | why                                                                     |
|-------------------------------------------|-------------------------------------------------------------------------|
| the sound, up to the network's first Conv | squared spectra leave the range of float16, quiet speech its resolution |
| Softmax, Reduce…, Pow, Sqrt               | exponentials, sums, squares                                             |
| rows of step tables and what meets them   | a solver's coefficients: their errors would reach all later steps       |
| Clip, Round: the solver's x0, the pixels  | no later layer averages their errors away                               |
| what reads a constant float16 cannot hold | above 65504, or nothing in it above the smallest normal number          |
| what reads weights in eight bits          | it computes in int8, which a Cast between it and its scales would break |

A row that only shifts the channels of a convolution is part of its bias by then (`export.fuse`).

The statistics of a LayerNormalization are float32 all the same: it says so in its `stash_type`, and TensorRT's
normalisation layer accumulates in float32 whatever it reads. Group norms are written as such (`export.fuse`).

The graph's inputs and outputs keep their types. All float inputs of an operator have one type, as a strongly typed
network wants it, and no tensor is cast twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from export.simplify import Array, constants, element_types, remove_unused

WORK = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Neg", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Erf", "HardSwish"}
LAYOUT = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat", "Resize"}
LAYOUT |= {"DepthToSpace", "SpaceToDepth"}
FOLLOWING = ELEMENTWISE | LAYOUT | {"LayerNormalization"}
SOUND = "pcm"

LARGEST, SMALLEST_NORMAL = float(np.finfo(np.float16).max), float(np.finfo(np.float16).tiny)


def to_half(model: ModelProto, keep: Set[str] = frozenset()) -> None:
    """Cast a float32 graph of static shapes to mixed precision, in place; the constants in `keep` stay float32."""
    types = element_types(shape_inference.infer_shapes(model, strict_mode=True))
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    _insert_casts(model, floats, _half_nodes(model, floats, keep))


def _half_nodes(model: ModelProto, floats: set[str], keep: Set[str]) -> set[int]:
    """The indices of the nodes that compute in float16."""
    known = constants(model)
    front_end = _front_end(model)
    scaled = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    half: set[int] = set()
    tensors: set[str] = set()  # those that come out as float16
    for index, node in enumerate(model.graph.node):
        read = [name for name in _data(node) if name in floats]
        computed = [name for name in read if name not in known]
        follows = node.op_type in FOLLOWING and computed and tensors.issuperset(computed)
        fits = all(name not in keep and _fits(known[name]) for name in read if name in known)
        integer = node.op_type in WORK and scaled.issuperset(read[:2])
        if read and fits and index not in front_end and not integer and (node.op_type in WORK or follows):
            half.add(index)
            tensors.update(node.output)
    _pull_casts_up(model, floats, half)
    return half


def _pull_casts_up(model: ModelProto, floats: set[str], half: set[int]) -> None:
    """Let what only moves numbers move float16 ones if nobody wants others: a Cast before a Split, not one per part."""
    readers = defaultdict(list)
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            readers[name].append(index)
    outputs = {o.name for o in model.graph.output}
    for index in reversed(range(len(model.graph.node))):
        node = model.graph.node[index]
        moves = node.op_type in LAYOUT - {"Concat", "Resize"} and node.input[0] in floats
        wanted = {reader for name in node.output for reader in readers[name]}
        if moves and wanted <= half and outputs.isdisjoint(node.output):
            half.add(index)


def _front_end(model: ModelProto) -> set[int]:
    """The nodes between the sound and the first convolution that does not itself read the sound."""
    found: set[int] = set()
    sound, spectrum = {SOUND}, {SOUND}
    for index, node in enumerate(model.graph.node):
        if spectrum.isdisjoint(node.input) or (node.op_type == "Conv" and node.input[0] not in sound):
            continue
        found.add(index)
        spectrum.update(node.output)
        if node.op_type in LAYOUT and sound.intersection(node.input):
            sound.update(node.output)
    return found


def _fits(values: Array) -> bool:
    """Whether float16 holds a constant: nothing overflows, and it is not all lost below the smallest normal number."""
    largest = float(np.abs(values).max(initial=0))
    return largest <= LARGEST and (largest == 0 or largest >= SMALLEST_NORMAL)


def _data(node: NodeProto) -> list[str]:
    """The inputs that share the type of the node's output: of a layout operator without shapes, scales and the like."""
    return list(node.input if node.op_type not in LAYOUT - {"Concat"} else node.input[:1])


def _insert_casts(model: ModelProto, floats: set[str], half: set[int]) -> None:
    """Give every node its inputs in its own type; `half`: the indices of the nodes that compute in float16."""
    known = constants(model)
    narrow = {name for index in half for name in model.graph.node[index].output}
    outputs = [o.name for o in model.graph.output if o.name in narrow]
    copies: dict[str, str] = {}  # tensor → the same numbers in the other type
    nodes: list[NodeProto] = []

    def copy(name: str) -> str:
        if name in known and name not in copies:
            copies[name] = f"{name}_half"
            model.graph.initializer.append(numpy_helper.from_array(known[name].astype(np.float16), copies[name]))
        elif name not in copies:
            kind, to = ("float", TensorProto.FLOAT) if name in narrow else ("half", TensorProto.FLOAT16)
            copies[name] = f"{name}_{kind}"
            nodes.append(helper.make_node("Cast", [name], [copies[name]], name=copies[name], to=to))
        return copies[name]

    for index, node in enumerate(model.graph.node):
        for place, name in enumerate(_data(node)):
            if name in floats and (name in narrow) != (index in half):
                node.input[place] = copy(name)
        nodes.append(node)
    borders = {copy(name): name for name in outputs} | {name: f"{name}_half" for name in outputs}
    for node in nodes:
        node.input[:] = [borders.get(name, name) for name in node.input]
        node.output[:] = [borders.get(name, name) for name in node.output]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    remove_unused(model)
