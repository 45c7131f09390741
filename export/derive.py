"""The graphs TensorRT is given, made from a bundle's own on the device that will run them: numpy and onnx, no torch.

A bundle's graphs have a free batch, weights stored as float16 and an int64 step. Here every dimension becomes a number,
every weight gets the type it is used in, and what follows from that is folded. Borders are float32, int32 and uint8:

    encoder    pcm [B, 96000] → condition [B, T, W]
    unet       latent [B, C, h, w], (history,) condition, step int32 [1], (guidance [1],) (prior_weight [1])
               → latent_next (, history_next)
    decoder    latent → image uint8 [B, H, W, 3]
    pipeline   pcm, noise [B, C, h, w], (guidance [1],) (prior_weight [1]) → image: encoder, all steps, decoder

What stands in brackets is there where the bundle has it. A pipeline's steps have their rows of the tables folded in and
share their weights.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, helper

from export import fuse, simplify
from export.half import to_half
from export.lint import MAX_IR_VERSION, OPSET
from runtime.bundle import STAGES, Bundle, StepTable
from runtime.engines import GRAPHS, INT8_FAMILY, MAX_ENGINE_BATCH, PRECISIONS
from runtime.errors import BackendFailed, InvalidArgument

STATE = ("latent", "history")
BROKEN = (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError, KeyError, ValueError)


def derive(bundle: Bundle, graph: str, *, batch: int, steps: int = 0, precision: str = "fp16") -> bytes:
    """The ONNX file of one of GRAPHS for a fixed batch; the same bundle and arguments give the same bytes.

    `batch`: 1..MAX_ENGINE_BATCH. `steps`: for the pipeline, one of the bundle's step tables. `precision`: "fp32",
    "fp16" for the mixture of `export.half`, or "int8" for the same around what the bundle's variant for TensorRT, which
    must be the one that was read, has in eight bits. Raises InvalidArgument, StepsUnavailable, and BackendFailed if the
    bundle's graphs are not what this release exports.
    """
    _check_arguments(graph, batch, steps, precision)
    if (bundle.variant == INT8_FAMILY) != (precision == "int8"):
        raise InvalidArgument(
            f"The precision {precision} cannot be made of the bundle's {bundle.variant or 'own graphs'}: int8 is made "
            f"of the variant {INT8_FAMILY}, which s2f-calibrate adds, all else of the bundle's own graphs."
        )
    table = bundle.manifest.table(steps) if graph == "pipeline" else None
    try:
        model, rows = (_stage(bundle, graph, batch), set()) if table is None else _pipeline(bundle, batch, table)
        if precision != "fp32":
            to_half(model, keep=rows)
        fuse.merge_twins(model)
        simplify.strip_metadata(model, graph, "s2f-edge")
        onnx.checker.check_model(model, full_check=True)
    except BROKEN as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise BackendFailed(
            f"No {graph} graph for TensorRT can be made from the bundle {bundle.manifest.name} ({reason}). "
            "Export the bundle again with this release."
        ) from error
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def _check_arguments(graph: str, batch: int, steps: int, precision: str) -> None:
    for name, value, known in (("graph", graph, GRAPHS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise InvalidArgument(f"{name} is {value!r:.40}. Choose one of {', '.join(known)}.")
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MAX_ENGINE_BATCH:
        raise InvalidArgument(f"batch must be a whole number in 1..{MAX_ENGINE_BATCH}, not {batch!r:.40}.")
    if graph != "pipeline" and steps != 0:
        raise InvalidArgument(
            f"steps is {steps!r:.40}, but the graph {graph} is the same for any number. Leave it out."
        )


def _stage(bundle: Bundle, stage: str, batch: int) -> ModelProto:
    """One of the bundle's graphs at a fixed batch, nothing left to fold."""
    model = onnx.load_from_string(bundle.files[stage])
    if [(o.domain, o.version) for o in model.opset_import] != [("", OPSET)]:
        raise BackendFailed(
            f"The graph {stage} of the bundle {bundle.manifest.name} is not of opset {OPSET}. "
            "Export the bundle again with this release."
        )
    model.ir_version = MAX_IR_VERSION
    model.graph.name = stage
    _fix_borders(model, batch)
    fuse.widen_weights(model)
    simplify.fold_constants(model)
    fuse.drop_expands(model)
    fuse.drop_pairs_of_shifts(model)
    fuse.fuse_batch_norms(model)
    fuse.spell_instance_norms(model)
    return model


def _fix_borders(model: ModelProto, batch: int) -> None:
    """The batch as a number and `step` as int32: TensorRT 8.6 has no int64, and Gather takes either."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "batch":
                dim.dim_value = batch
        if value.type.tensor_type.elem_type == TensorProto.INT64:
            value.type.tensor_type.elem_type = TensorProto.INT32


def _pipeline(bundle: Bundle, batch: int, table: StepTable) -> tuple[ModelProto, set[str]]:
    """All stages in one graph, and the names of the constants that came out of the table's rows."""
    encoder, unet, decoder = (_stage(bundle, stage, batch) for stage in STAGES)
    whole = _frame(encoder, unet, decoder)
    options = {value.name: value.name for value in whole.graph.input[2:]}
    condition = _append(whole, encoder, "encoder", {"pcm": "pcm"})["condition"]
    state = {"latent": "noise"}
    if bundle.manifest.history:
        state["history"] = "no_history"
        shape = (batch, *dataclasses.astuple(bundle.manifest.latent))
        simplify.add_constant(whole, "no_history", np.zeros(shape, np.float32))
    for step in range(len(table.timesteps)):
        simplify.add_constant(whole, f"row_{step}", np.array([table.first_row + step], np.int32))
        bound = {**options, **state, "condition": condition, "step": f"row_{step}"}
        made = _append(whole, unet, f"step_{step}", bound)
        state = {name: made[f"{name}_next"] for name in state}
    _append(whole, decoder, "decoder", {"latent": state["latent"], "image": "image"})
    weights = simplify.constants(whole).keys()
    simplify.fold_constants(whole)
    rows = simplify.constants(whole).keys() - weights
    fuse.drop_neutral(whole)
    fuse.fuse_biases(whole)
    return whole, rows


def _frame(encoder: ModelProto, unet: ModelProto, decoder: ModelProto) -> ModelProto:
    """A pipeline without nodes: the borders of the stages that stay borders."""
    inputs = {value.name: value for value in unet.graph.input}
    noise = inputs["latent"]
    noise.name = "noise"
    options = [value for name, value in inputs.items() if name not in (*STATE, "condition", "step")]
    graph = helper.make_graph([], "pipeline", [*encoder.graph.input, noise, *options], list(decoder.graph.output))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=MAX_IR_VERSION)


def _append(whole: ModelProto, stage: ModelProto, place: str, bound: dict[str, str]) -> dict[str, str]:
    """Add a stage to the pipeline. Returns what each of its tensors is called there.

    `bound`: the names its borders get; all else begins with `place`, but for its weights, which begin with the name of
    the stage and are added once, however often the stage is.
    """
    names = {"": "", **bound}
    present = {tensor.name for tensor in whole.graph.initializer}
    for tensor in stage.graph.initializer:
        names[tensor.name] = f"{stage.graph.name}/{tensor.name}"
        if names[tensor.name] not in present:
            whole.graph.initializer.add().CopyFrom(tensor)
            whole.graph.initializer[-1].name = names[tensor.name]
    for node in stage.graph.node:
        copy = whole.graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{place}/{node.name or node.output[0]}"
        copy.input[:] = [names[name] for name in node.input]
        copy.output[:] = [names.setdefault(name, f"{place}/{name}") for name in node.output]
    return names
