"""The stages as they are: what each costs by count, what it takes, and which operators take it.

Counted in the graphs a device would be given (`export.derive`: batch 1, constants folded). Measured in two ways: ours
by the runtime's own stage times, OpenVINO by running each graph alone. Times are medians, and the best beside them,
because the peak is that of the best product. Profiles are the engines' own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from benchmarks.gpu.parts import JSON
from benchmarks.gpu.plan import warm_up
from benchmarks.peers.by_hand import naive_onnxruntime, openvino_request, options
from benchmarks.peers.task import Task
from export.cost import count, matrix_by_operator
from export.derive import derive
from runtime.bench import stopwatch
from runtime.bundle import STAGES, Bundle

RUNS, MOST, WARM = 60, 1.5, 0.3
UNCOUNTED, PROFILED = 3, 20
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
    """One way to run a stage. `measure`: {"p50", "best"} in ms by stage; `profile`: ms by operator, by stage."""

    precision: str
    measure: Callable[[Task], dict[str, JSON]]
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
    condition = naive_onnxruntime(task, "encoder")({"pcm": task.window()})["condition"]
    latent, row = task.noise(0), task.bundle.manifest.table(task.steps).first_row
    state = {"latent": latent, **({"history": np.zeros_like(latent)} if task.bundle.manifest.history else {})}
    step = {**state, "condition": condition, "step": np.array([row], np.int64), **options(task)}
    return {"encoder": {"pcm": task.window()}, "unet": step, "decoder": {"latent": latent}}


def operators_of_trace(events: list[JSON]) -> dict[str, float]:
    """ONNX Runtime's profile of several runs: milliseconds of one run by operator, the median of each node's."""
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return _by_operator((event["args"]["op_name"], event["name"], event["dur"] / 1e3) for event in nodes)


def _by_operator(times: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """Of (operator, node, milliseconds) of every run: medians of the nodes, summed by operator, the largest first."""
    nodes: dict[tuple[str, str], list[float]] = {}
    for operator, node, ms in times:
        nodes.setdefault((operator, node), []).append(ms)
    found: dict[str, float] = {}
    for (operator, _), values in nodes.items():
        found[operator] = found.get(operator, 0.0) + float(np.median(values))
    return {name: round(ms, 4) for name, ms in sorted(found.items(), key=lambda item: -item[1]) if ms}


def _times(values: list[float]) -> JSON:
    return {"p50": round(float(np.median(values)), 4), "best": round(min(values), 4)}


def _ours(task: Task) -> dict[str, JSON]:
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
    return {stage: _times(values) for stage, values in spent.items()}


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
            found[stage] = operators_of_trace(events)
    return found


def _openvino(precision: str) -> Engine:
    def measure(task: Task) -> dict[str, JSON]:
        found = {}
        for stage, feeds in inputs(task).items():
            request = openvino_request(task, stage, precision)

            def run(request: Any = request, feeds: Arrays = feeds) -> object:
                return request.infer(dict(feeds), share_inputs=True)

            warm_up(run, WARM)
            found[stage] = _times(stopwatch(run, RUNS, MOST))
        return found

    def profile(task: Task) -> dict[str, dict[str, float]]:
        found = {}
        for stage, feeds in inputs(task).items():
            request = openvino_request(task, stage, precision, {"PERF_COUNT": "YES"})
            times = []
            for number in range(UNCOUNTED + PROFILED):
                request.infer(dict(feeds), share_inputs=True)
                if number >= UNCOUNTED:
                    seen = request.get_profiling_info()
                    times += [(n.node_type, n.node_name, n.real_time.total_seconds() * 1e3) for n in seen]
            found[stage] = _by_operator(times)
        return found

    return Engine(precision, measure, profile)
