"""The stages as they are: what each costs by count, what it takes, and which operators take it.

Counted in the graphs a device would be given (`export.derive`: batch 1, constants folded). Measured by the runtime's
own stage times of whole portraits. Times are medians, and the best beside them, because the peak is that of the best
product. Profiles are the engines' own, of sessions with the very options that the runtime opens its own with.
"""

from __future__ import annotations

import dataclasses
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
from benchmarks.peers.arms import arms, missing
from benchmarks.peers.by_hand import naive_onnxruntime, openvino_model, options
from benchmarks.peers.ratios import OURS
from benchmarks.peers.task import Task
from export.cost import count, matrix_by_operator
from export.derive import derive
from runtime.backends import Settings
from runtime.backends.openvino import compile_graph
from runtime.backends.openvino import package as openvino_package
from runtime.backends.ort import open_session
from runtime.bench import stopwatch
from runtime.bundle import STAGES, Bundle, Manifest
from runtime.pipeline import read_for
from runtime.portrait import Timings

RUNS, MOST, WARM = 60, 1.5, 0.3
UNCOUNTED, PROFILED = 3, 20
KINDS = {
    "convolution": ("Conv", "FusedConv", "NhwcFusedConv", "Convolution", "ConvTranspose", "QLinearConv"),
    "matrix product": (
        *("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "FullyConnected"),
        *("QLinearMatMul", "QGemm", "MatMulIntegerToFloat"),
    ),
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
    """Ours on a device in a precision, as a caller has it."""

    device: str
    precision: str

    def measure(self, task: Task) -> dict[str, JSON]:
        """{"p50", "best"} in ms by stage."""
        with runtime.load(task.folder, device=self.device, threads=task.cores, precision=self.precision) as pipeline:
            return _timed(lambda: pipeline.generate(task.speech, steps=task.steps).timings)

    def profile(self, task: Task) -> dict[str, dict[str, float]]:
        """Milliseconds by operator, by stage, of each graph alone."""
        settings = Settings(self.device, task.cores, self.precision)
        files = read_for(task.folder, settings).files
        return {stage: PROFILES[self.device](files[stage], settings, feeds) for stage, feeds in inputs(task).items()}


def engines(manifest: Manifest) -> dict[str, Engine]:
    """Those that are here, and have graphs in the bundle."""
    ours = {name: arm for name, arm in arms().items() if name.startswith(OURS) and arm.device in PROFILES}
    return {name: Engine(arm.device, arm.precision) for name, arm in ours.items() if not missing(arm, manifest)}


def inputs(task: Task) -> dict[str, Arrays]:
    """What each stage is given: the task's speech and noise; the condition is the encoder's, the decoder gets noise."""
    condition = naive_onnxruntime(task, task.bundle.files["encoder"])({"pcm": task.window()})["condition"]
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


def _timed(draw: Callable[[], Timings]) -> dict[str, JSON]:
    """Times of the stages, as the runtime tells them of whole portraits."""
    spent: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def once() -> None:
        timings = draw()
        for stage, values in (("encoder", [timings.encoder]), ("unet", timings.steps), ("decoder", [timings.decoder])):
            spent[stage] += [value for value in values if value is not None]

    warm_up(once, WARM)
    for values in spent.values():
        values.clear()
    stopwatch(once, RUNS, MOST)
    return {stage: _times(values) for stage, values in spent.items()}


def _profile_onnxruntime(data: bytes, settings: Settings, feeds: Arrays) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        session = profiled_session(data, settings, Path(scratch) / "profile")
        for _ in range(PROFILED):
            session.run(None, dict(feeds))
        return operators_of_trace(json.loads(Path(session.end_profiling()).read_bytes()))


def profiled_session(data: bytes, settings: Settings, prefix: Path) -> Any:
    """The runtime's session of a graph once more, by the options of that one, with a profile in a file at `prefix`."""
    import onnxruntime

    opened = open_session(data, settings, "a graph to profile")
    options = opened.get_session_options()
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return onnxruntime.InferenceSession(data, options, providers=opened.get_providers())


def _profile_openvino(data: bytes, settings: Settings, feeds: Arrays) -> dict[str, float]:
    request = profiled_model(data, settings).create_infer_request()
    times = []
    for number in range(UNCOUNTED + PROFILED):
        request.infer(dict(feeds), share_inputs=True)
        if number >= UNCOUNTED:
            seen = request.get_profiling_info()
            times += [(n.node_type, n.node_name, n.real_time.total_seconds() * 1e3) for n in seen]
    return _by_operator(times)


def profiled_model(data: bytes, settings: Settings) -> Any:
    """The graph as the runtime compiles it once more, by the properties of that one, with counters of the operators."""
    opened, core = compile_graph(data, settings, "a graph to profile"), openvino_package().Core()
    known = core.get_property("CPU", "SUPPORTED_PROPERTIES")
    names = [name for name in opened.get_property("SUPPORTED_PROPERTIES") if known.get(name) == "RW"]
    properties = {name: opened.get_property(name) for name in names}
    # An empty set, a policy that is not chosen, is read but not taken.
    chosen = {name: value for name, value in properties.items() if value != set()}
    return core.compile_model(openvino_model(core, data), "CPU", {**chosen, "PERF_COUNT": True})


PROFILES: Mapping[str, Callable[[bytes, Settings, Arrays], dict[str, float]]] = {
    "cpu": _profile_onnxruntime,
    "openvino": _profile_openvino,
}
"""How a graph is profiled, by device."""
