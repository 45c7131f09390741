"""From inference modules to ONNX bytes: opset 17, one free batch axis, weights inside, same weights same bytes."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn

from export import simplify
from export.batch import NotMergeableError, merge_batches
from export.sharing import share_guidance
from runtime.bundle import TensorSpec
from runtime.errors import BackendFailed

OPSET = 17
BATCHES = (2, 3)
STORED_AS_FLOAT16 = 256  # elements from which a weight is worth a Cast
DTYPES = {"float32": torch.float32, "int64": torch.int64}


@dataclass(frozen=True)
class Signature:
    """Names, dtypes and shapes of a stage's tensors, from the contract."""

    stage: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def export_graph(module: nn.Module, signature: Signature, *, float16: bool, producer: str) -> bytes:
    """The ONNX file of a stage. Raises BackendFailed if the module cannot be written as one static graph."""
    traces = [_trace(module, signature, batch) for batch in BATCHES]
    for trace in traces:
        simplify.fold_constants(trace)
        share_guidance(trace)
    try:
        model = merge_batches(traces[0], traces[1], BATCHES)
    except NotMergeableError as error:
        message = f"stage {signature.stage} cannot be exported with a free batch: {error}; write its shapes statically"
        raise BackendFailed(message) from error
    _free_batch(model, signature)
    if float16:
        simplify.store_float16(model, STORED_AS_FLOAT16)
    simplify.strip_metadata(model, signature.stage, producer)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def example_inputs(signature: Signature, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Inputs of the contract's shapes: normal noise, row 0 for `step`, 1.5 for `guidance`."""
    made = []
    for spec in signature.inputs:
        shape = [batch if dim == "batch" else int(dim) for dim in spec.shape]
        if spec.dtype == "int64":
            made.append(torch.zeros(shape, dtype=torch.int64))
        elif spec.name == "guidance":
            made.append(torch.full(shape, 1.5))
        else:
            made.append(torch.randn(shape, generator=generator).clamp(-1, 1))
    return tuple(made)


def _trace(module: nn.Module, signature: Signature, batch: int) -> onnx.ModelProto:
    inputs = example_inputs(signature, batch, torch.Generator().manual_seed(0))
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracer remarks about constants, which is what the fixed batch is for
        torch.onnx.export(
            module.eval(),
            inputs,
            buffer,  # type: ignore[arg-type]  # the annotation leaves out what this exporter takes
            dynamo=False,
            opset_version=OPSET,
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            # PRESERVE: batch norm stays a node, so that weights stay what training stored and float16 can hold them.
            training=torch.onnx.TrainingMode.PRESERVE,
            external_data=False,
        )
    return onnx.load_from_string(buffer.getvalue())


def _free_batch(model: onnx.ModelProto, signature: Signature) -> None:
    """Declare the contract's shapes at the graph's border. Raises BackendFailed if an input was optimised away."""
    for values, specs in ((model.graph.input, signature.inputs), (model.graph.output, signature.outputs)):
        if [v.name for v in values] != [s.name for s in specs]:
            found = ", ".join(v.name for v in values)
            raise BackendFailed(
                f"stage {signature.stage} has tensors {found}, not those of the contract; mend its module"
            )
        for value, spec in zip(values, specs, strict=True):
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, spec.shape, strict=True):
                if size == "batch":
                    dim.Clear()
                    dim.dim_param = "batch"
