"""A bundle that runs in milliseconds: real graphs with the contract's tensors and fixed random weights.

The portraits are coloured noise, but they depend on the voice, the seed, the steps and the guidance as a model's do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.bundle import (
    ConditionSpec,
    FileRef,
    GuidanceSpec,
    ImageSpec,
    LatentSpec,
    Manifest,
    PriorSpec,
    Stage,
    StepTable,
    TensorSpec,
    Variant,
    manifest_to_json,
    read_manifest,
    sha256_hex,
    stage_tensors,
    takes_history,
)

LATENT = LatentSpec(4, 4, 4)
IMAGE = ImageSpec(32, 32)
CONDITION = ConditionSpec(2, 4)
STEPS = (1, 2, 4)
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}
CARD = b"# tiny\n\nRandom weights for tests.\n"


@dataclasses.dataclass(frozen=True)
class Arm:
    """What differs between the two kinds of bundles: which options are folded in, and whether steps look back."""

    solver: str
    prior: PriorSpec
    guidance: GuidanceSpec

    @property
    def tensors(self) -> dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
        """The contract's tensors of a bundle of this kind."""
        shapes = LATENT, IMAGE, CONDITION
        return stage_tensors(*shapes, self.prior, self.guidance, history=takes_history(self.solver))


DIFFUSION = Arm("ddim", PriorSpec("none", 0.0, 0.0, 0.0, "every"), GuidanceSpec(1.5, 0.0, 4.0))
SHORTCUT = Arm("shortcut", PriorSpec("add", 0.01, 0.0, 0.1, "start"), GuidanceSpec(2.0, 2.0, 2.0))


def write_tiny_bundle(folder: Path, *, name: str = "tiny", steps: Sequence[int] = STEPS, arm: Arm = DIFFUSION) -> Path:
    """Write a whole valid bundle with the given step tables into `folder` (made if missing) and return it."""
    rng = np.random.default_rng(7)
    graphs = {"encoder": _encoder(rng), "unet": _unet(rng, sum(steps), arm), "decoder": _decoder(rng)}
    return write_bundle(folder, graphs, name, steps, arm)


def write_bundle(folder: Path, graphs: dict[str, bytes], name: str, steps: Sequence[int], arm: Arm = DIFFUSION) -> Path:
    """Write graphs with a manifest that fits them in sizes and hashes; the graphs' tensors may differ."""
    folder.mkdir(parents=True, exist_ok=True)
    stages = {}
    for stage, data in graphs.items():
        (folder / f"{stage}.onnx").write_bytes(data)
        stages[stage] = Stage(f"{stage}.onnx", sha256_hex(data), len(data), *arm.tensors[stage])
    (folder / "MODEL_CARD.md").write_bytes(CARD)
    manifest = Manifest(
        name=name,
        generator="s2f-edge tests",
        licence="CC0-1.0",
        training_data="none: random weights",
        stages=stages,
        latent=LATENT,
        image=IMAGE,
        condition=CONDITION,
        prior=arm.prior,
        guidance=arm.guidance,
        step_tables=_tables(steps, arm.solver),
        default_steps=max(steps),
        model_card=FileRef("MODEL_CARD.md", sha256_hex(CARD), len(CARD)),
    )
    (folder / "manifest.json").write_bytes(manifest_to_json(manifest))
    return folder


def add_variant(
    folder: Path, stages: Sequence[str] = ("unet",), *, family: str = "int8-x86", gate: str = "passed"
) -> Path:
    """Give a bundle a variant: graphs that compute what its own do, in other files with other hashes."""
    manifest, refs = read_manifest(folder)[0], {}
    for stage in stages:
        model = onnx.load(folder / f"{stage}.onnx")
        model.doc_string = family
        data, name = model.SerializeToString(), f"{stage}.{family}.onnx"
        (folder / name).write_bytes(data)
        refs[stage] = FileRef(name, sha256_hex(data), len(data))
    variants = {**manifest.variants, family: Variant(refs, gate, 256, 41.5, 0.99)}
    (folder / "manifest.json").write_bytes(manifest_to_json(dataclasses.replace(manifest, variants=variants)))
    return folder


def _tables(steps: Sequence[int], solver: str) -> dict[int, StepTable]:
    tables: dict[int, StepTable] = {}
    row = 0
    for count in steps:
        tables[count] = StepTable(solver, row, tuple(999.0 * (count - i) / count for i in range(count)))
        row += count
    return tables


def _encoder(rng: np.random.Generator) -> bytes:
    """Mean level of eight random filters over the voice: [batch, 96000] to [batch, 2, 4]."""
    channels = CONDITION.tokens * CONDITION.width
    constants = {
        "wave_shape": np.array([-1, 1, 96000]),
        "kernel": _normal(rng, channels, 1, 64),
        "tokens_shape": np.array([-1, CONDITION.tokens, CONDITION.width]),
        "gain": np.float32(20.0),
    }
    nodes = [
        helper.make_node("Reshape", ["pcm", "wave_shape"], ["wave"]),
        helper.make_node("Conv", ["wave", "kernel"], ["bands"], strides=[16]),
        helper.make_node("Abs", ["bands"], ["level"]),
        helper.make_node("GlobalAveragePool", ["level"], ["mean"]),
        helper.make_node("Reshape", ["mean", "tokens_shape"], ["tokens"]),
        helper.make_node("Mul", ["tokens", "gain"], ["condition"]),
    ]
    return make_graph("encoder", nodes, constants)


def _unet(rng: np.random.Generator, rows: int, arm: Arm) -> bytes:
    """x0 = tanh(latent + guidance · projection(condition) + prior_weight · prior); latent_next = A latent + B x0, and
    + C history where there is one, by step. The prior is large, so that its weight shows."""
    inputs = {spec.name for spec in arm.tensors["unet"][0]}
    size = LATENT.channels * LATENT.height * LATENT.width
    constants = {
        "flat_shape": np.array([-1, CONDITION.tokens * CONDITION.width]),
        "projection": _normal(rng, CONDITION.tokens * CONDITION.width, size),
        "latent_shape": np.array([-1, LATENT.channels, LATENT.height, LATENT.width]),
        "a": rng.uniform(0.4, 0.9, rows).astype(np.float32),
        "b": rng.uniform(0.4, 0.9, rows).astype(np.float32),
        "c": rng.uniform(0.0, 0.2, rows).astype(np.float32),
        "prior": 10 * _normal(rng, LATENT.channels, LATENT.height, LATENT.width),
        "folded": np.float32(2.0),
    }
    x0 = "history_next" if "history" in inputs else "x0"
    parts = [("latent", "a"), (x0, "b"), *([("history", "c")] if "history" in inputs else [])]
    prior = [helper.make_node("Mul", ["prior", "prior_weight"], ["face"])] if "prior_weight" in inputs else []
    nodes = [
        helper.make_node("Reshape", ["condition", "flat_shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "projection"], ["voice_flat"]),
        helper.make_node("Reshape", ["voice_flat", "latent_shape"], ["voice"]),
        helper.make_node("Mul", ["voice", "guidance" if "guidance" in inputs else "folded"], ["guided"]),
        *prior,
        helper.make_node("Sum", ["latent", "guided", *(["face"] if prior else [])], ["sum"]),
        helper.make_node("Tanh", ["sum"], [x0]),
        *(helper.make_node("Gather", [table, "step"], [f"{table}_now"]) for _, table in parts),
        *(helper.make_node("Mul", [value, f"{table}_now"], [f"{table}_part"]) for value, table in parts),
        helper.make_node("Sum", [f"{table}_part" for _, table in parts], ["latent_next"]),
    ]
    return make_graph("unet", nodes, constants, arm)


def _decoder(rng: np.random.Generator) -> bytes:
    """One convolution to 8 × 8 pixels per latent cell, then clamp, scale and layout: uint8 [batch, 32, 32, 3]."""
    block = IMAGE.height // LATENT.height
    constants = {
        "kernel": 0.2 * _normal(rng, 3 * block * block, LATENT.channels, 1, 1),
        "half": np.float32(127.5),
        "low": np.float32(0),
        "high": np.float32(255),
    }
    nodes = [
        helper.make_node("Conv", ["latent", "kernel"], ["cells"]),
        helper.make_node("DepthToSpace", ["cells"], ["pixels"], blocksize=block),
        helper.make_node("Mul", ["pixels", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], ["shifted"]),
        helper.make_node("Clip", ["shifted", "low", "high"], ["clipped"]),
        helper.make_node("Round", ["clipped"], ["rounded"]),
        helper.make_node("Transpose", ["rounded"], ["rows"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["rows"], ["image"], to=TensorProto.UINT8),
    ]
    return make_graph("decoder", nodes, constants)


def make_graph(stage: str, nodes: list[Any], constants: dict[str, Any], arm: Arm = DIFFUSION, **dtypes: str) -> bytes:
    """The ONNX bytes of a stage with the contract's tensors; `dtypes` gives a tensor another dtype, for bad graphs."""
    inputs, outputs = arm.tensors[stage]
    graph = helper.make_graph(
        nodes,
        stage,
        [_value(spec, dtypes) for spec in inputs],
        [_value(spec, dtypes) for spec in outputs],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _value(spec: TensorSpec, dtypes: dict[str, str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, TYPES[dtypes.get(spec.name, spec.dtype)], list(spec.shape))


def _normal(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)
