"""The stages as they are: what each costs by count, what it takes, and which operators take it.

Counted in the graphs a device would be given (`export.derive`: batch 1, constants folded). Measured in two ways: ours
by the runtime's own stage times, OpenVINO by running each graph alone. Profiles are the engines' own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from benchmarks.gpu.parts import JSON
from benchmarks.gpu.plan import stopwatch, warm_up
from benchmarks.peers.by_hand import openvino_request, options
from benchmarks.peers.task import Task
from export.cost import count, matrix_by_operator
from export.derive import derive
from runtime.bundle import STAGES, Bundle

RUNS, MOST, WARM = 60, 1.5, 0.3
PROFILED = 20
KINDS = {
    "convolution": ("Conv", "FusedConv", "NhwcFusedConv", "Convolution", "ConvTranspose"),
    "matrix product": ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "FullyConnected"),
}
"""Operators of the engines, optimised ones too, by the kind of matrix work they are."""

Arrays = Mapping[str, Any]


def costs(bundle: Bundle) -> JSON:
    """Stage → operations by kind, bytes of weights and of activations between fused operators, in float32."""
    found = {}
    for stage in STAGES:
        data = derive(bundle, stage, batch=1, precision="fp32")
        cost = count(data)
        found[stage] = {
            "flops": cost.flops,
            "by_kind": by_kind(matrix_by_operator(data)),
            "elementwise": cost.elementwise,
            "weight_bytes": cost.weight_bytes,
            "activation_bytes": cost.fused_activation_bytes,
            "nodes": cost.nodes,
        }
    return found


def by_kind(by_operator: Mapping[str, float]) -> dict[str, Any]:
    """Values of operators summed by KINDS; what is of no kind is "other"."""
    found: Counter[str] = Counter()
    for operator, value in by_operator.items():
        found[next((kind for kind, names in KINDS.items() if operator in names), "other")] += value  # type: ignore[assignment]
    return dict(found)


@dataclasses.dataclass(frozen=True)
class Engine:
    """One way to run a stage. `measure`: median milliseconds by stage; `profile`: milliseconds by operator, by stage."""

    precision: str
    measure: Callable[[Task], dict[str, float]]
    profile: Callable[[Task], dict[str, dict[str, float]]]


def engines() -> dict[str, Engine]:
    """Those that are here."""
    found = {}
    if importlib.util.find_spec("onnxruntime"):
        found["ours cpu"] = Engine("f32", _ours, _profile_onnxruntime)
    if importlib.util.find_spec("openvino"):
        for precision in ("f32", "bf16"):
            found[f"openvino {precision}"] = _openvino(precision)
    return found


def inputs(task: Task) -> dict[str, Arrays]:
    """What each stage is given: the task's speech and noise; the condition is the encoder's, the decoder gets noise."""
    with runtime.load(task.folder, device="cpu", threads=task.cores) as pipeline:
        condition = pipeline._executor.encode(task.window())  # type: ignore[union-attr]  # noqa: SLF001
    latent, row = task.noise(0), task.bundle.manifest.table(task.steps).first_row
    state = {"latent": latent, **({"history": np.zeros_like(latent)} if task.bundle.manifest.history else {})}
    step = {**state, "condition": condition, "step": np.array([row], np.int64), **options(task)}
    return {"encoder": {"pcm": task.window()}, "unet": step, "decoder": {"latent": latent}}


def operators_of_trace(events: list[JSON], runs: int) -> dict[str, float]:
    """ONNX Runtime's profile: milliseconds of one run by operator."""
    found: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event.get("name", "").endswith("_kernel_time"):
            found[event["args"]["op_name"]] += event["dur"]
    return {name: micro / 1e3 / runs for name, micro in found.most_common()}


def _ours(task: Task) -> dict[str, float]:
    spent: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def draw() -> None:
        timings = pipeline.generate(task.speech, steps=task.steps).timings
        for stage, values in (("encoder", [timings.encoder]), ("unet", timings.steps), ("decoder", [timings.decoder])):
            spent[stage] += [value for value in values if value is not None]

    with runtime.load(task.folder, device="cpu", threads=task.cores) as pipeline:
        warm_up(draw, WARM)
        for values in spent.values():
            values.clear()
        stopwatch(draw, RUNS, MOST)
    return {stage: float(np.median(values)) for stage, values in spent.items()}


def _profile_onnxruntime(task: Task) -> dict[str, dict[str, float]]:
    import onnxruntime

    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for stage, feeds in inputs(task).items():
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = task.cores
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(scratch) / stage)
            data = task.bundle.files[stage]
            session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
            for _ in range(PROFILED):
                session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_bytes())
            found[stage] = operators_of_trace(events, PROFILED)
    return found


def _openvino(precision: str) -> Engine:
    def measure(task: Task) -> dict[str, float]:
        found = {}
        for stage, feeds in inputs(task).items():
            request = openvino_request(task, stage, precision)

            def run(request: Any = request, feeds: Arrays = feeds) -> object:
                return request.infer(dict(feeds), share_inputs=True)

            warm_up(run, WARM)
            found[stage] = float(np.median(stopwatch(run, RUNS, MOST)))
        return found

    def profile(task: Task) -> dict[str, dict[str, float]]:
        found = {}
        for stage, feeds in inputs(task).items():
            request = openvino_request(task, stage, precision, {"PERF_COUNT": "YES"})
            spent: Counter[str] = Counter()
            for number in range(PROFILED + 3):
                request.infer(dict(feeds), share_inputs=True)
                if number >= 3:
                    for node in request.get_profiling_info():
                        spent[node.node_type] += node.real_time.total_seconds() * 1e3  # type: ignore[assignment]
            found[stage] = {name: value / PROFILED for name, value in spent.most_common() if value}
        return found

    return Engine(precision, measure, profile)
