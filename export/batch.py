"""One free batch axis out of two traces with fixed batch sizes.

The exporter's own dynamic axes leave hundreds of Shape, Gather and Concat nodes that runtimes execute at every call.
Traced with a fixed batch, all of that folds into constants, and the constants in which two traces of different batch
sizes differ are the places where the batch goes.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper

from export.simplify import Array, add_constant, constants, remove_unused


class NotMergeableError(Exception):
    """The two traces differ in more than their batch size."""


def merge_batches(first: ModelProto, second: ModelProto, batches: tuple[int, int]) -> ModelProto:
    """One model with a free batch axis from two folded traces of the same module at two batch sizes.

    A shape constant that differs gets -1 in a Reshape, and is computed from the first input's batch elsewhere.
    Raises NotMergeableError when the traces differ in structure or in anything that is not a multiple of the batch.
    """
    if [_signature(n) for n in first.graph.node] != [_signature(n) for n in second.graph.node]:
        raise NotMergeableError("the two traces have different nodes")
    one, other = constants(first), constants(second)
    if one.keys() != other.keys():
        raise NotMergeableError("the two traces have different constants")
    shapes = {
        name: BatchShape.of(name, one[name], other[name], batches)
        for name in one
        if not np.array_equal(one[name], other[name])
    }
    model = ModelProto()
    model.CopyFrom(first)
    computed: list[NodeProto] = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in shapes:
                node.input[index] = shapes[name].free(model, node, computed)
    nodes = [*computed, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    remove_unused(model)
    return model


class BatchShape:
    """A shape constant some of whose entries are multiples of the batch: entry = fixed + factor·batch."""

    def __init__(self, name: str, fixed: Array, factors: Array) -> None:
        self.name, self.fixed, self.factors = name, fixed, factors

    @classmethod
    def of(cls, name: str, one: Array, other: Array, batches: tuple[int, int]) -> BatchShape:
        """From its values in the two traces. Raises NotMergeableError."""
        if one.dtype != np.int64 or one.shape != other.shape or one.ndim != 1:
            raise NotMergeableError(f"constant {name} depends on the batch, but is not a shape")
        factors = np.where(one != other, one // batches[0], 0)
        fixed = np.where(one != other, 0, one)
        if not np.array_equal(fixed + factors * batches[0], one) or not np.array_equal(
            fixed + factors * batches[1], other
        ):
            raise NotMergeableError(
                f"constant {name}: {one.tolist()} and {other.tolist()} are not multiples of {batches}"
            )
        return cls(name, fixed, factors)

    def free(self, model: ModelProto, node: NodeProto, computed: list[NodeProto]) -> str:
        """Name of the input that replaces this constant in `node`; adds what is needed to model and `computed`."""
        if node.op_type == "Reshape" and np.count_nonzero(self.factors) == 1:
            name = f"{self.name}_any_batch"
            add_constant(model, name, np.where(self.factors != 0, -1, self.fixed))
            return name
        name = f"{self.name}_of_batch"
        if all(name not in other.output for other in computed):
            computed.extend(self._compute(model, name, first=not computed))
        return name

    def _compute(self, model: ModelProto, name: str, *, first: bool) -> list[NodeProto]:
        add_constant(model, "batch_axis", np.zeros(1, np.int64))
        add_constant(model, f"{name}_factors", self.factors)
        add_constant(model, f"{name}_fixed", self.fixed)
        shape = helper.make_node("Shape", [model.graph.input[0].name], ["batch_shape"], name="batch_shape")
        size = helper.make_node("Gather", ["batch_shape", "batch_axis"], ["batch_size"], name="batch_size", axis=0)
        scaled = helper.make_node("Mul", ["batch_size", f"{name}_factors"], [f"{name}_scaled"], name=f"{name}_scaled")
        total = helper.make_node("Add", [f"{name}_scaled", f"{name}_fixed"], [name], name=name)
        return [*([shape, size] if first else []), scaled, total]


def _signature(node: NodeProto) -> tuple[object, ...]:
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return node.op_type, tuple(node.input), tuple(node.output), tuple(attributes)
