"""Arms that open the bundle's three graphs and drive the loop from the host, as an integrator would by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.parts import JSON
from benchmarks.peers.task import Pixels, Task, check_parity
from runtime.backends.openvino import package as openvino_package
from runtime.backends.openvino import precision_here
from runtime.bundle import STAGES
from runtime.pipeline import read_for, settings_for

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""A graph: arrays by name in, arrays by name out."""


class ByHand:
    """Encoder, as many steps as asked for, decoder."""

    def __init__(self, task: Task, open_graph: Callable[[Task, bytes], Run], device: str, precision: str) -> None:
        """The graphs that `runtime.load` opens for a device and a precision; in float32 parity must hold."""
        self._task, self._open, self._device, self._precision = task, open_graph, device, precision
        self._stages: dict[str, Run] = {}

    def prepare(self) -> JSON:
        """Open the graphs."""
        begin, task = time.monotonic(), self._task
        settings = settings_for(task.bundle.manifest, self._device, task.threads, self._precision)
        files = read_for(task.folder, settings).files
        self._stages = {stage: self._open(task, files[stage]) for stage in STAGES}
        about: JSON = {"seconds": round(time.monotonic() - begin, 2)}
        return {**about, "parity_db": round(check_parity(task, self), 2)} if self._precision == "fp32" else about

    def draw(self, seed: int) -> Pixels:
        """See `Peer`."""
        task, manifest = self._task, self._task.bundle.manifest
        condition = self._stages["encoder"]({"pcm": task.window()})["condition"]
        given = {"condition": condition, **options(task)}
        state = {"latent": task.noise(seed)}
        if manifest.history:
            state["history"] = np.zeros(task.latent, np.float32)
        first = manifest.table(task.steps).first_row
        for row in range(first, first + task.steps):
            made = self._stages["unet"]({**state, **given, "step": np.array([row], np.int64)})
            state = {name: made[f"{name}_next"] for name in state}
        image: Pixels = np.array(self._stages["decoder"]({"latent": state["latent"]})["image"][0])
        return image

    def close(self) -> None:
        """See `Peer`."""
        self._stages.clear()


def options(task: Task) -> dict[str, Array]:
    """The defaults of what the bundle's caller may choose."""
    manifest = task.bundle.manifest
    found = {
        "guidance": (manifest.guidance, manifest.guidance.default),
        "prior_weight": (manifest.prior, manifest.prior.weight),
    }
    return {name: np.array([value], np.float32) for name, (spec, value) in found.items() if not spec.fixed}


def naive_onnxruntime(task: Task, data: bytes) -> Run:
    """A session with every option as it comes, but for the number of threads where one is asked for."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    if task.threads is not None:
        settings.intra_op_num_threads = task.threads
    session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        return dict(zip(names, session.run(None, dict(feeds)), strict=True))

    return run


def openvino(precision: str) -> Callable[[Task, bytes], Run]:
    """The graph at batch 1, compiled for latency in `precision`; inputs are not copied.

    What a graph in eight bits leaves in float32 is computed in the processor's own precision, as OpenVINO does unasked.
    """

    def open_graph(task: Task, data: bytes) -> Run:
        core = openvino_package().Core()
        rest = (precision_here() if precision == "int8" else precision).replace("fp32", "f32")
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": rest}
        # Else OpenVINO rounds what meets weights stored in eight bits, and computes something else than was asked for.
        hints["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
        if task.threads is not None:
            hints["INFERENCE_NUM_THREADS"] = str(task.threads)
        request = core.compile_model(openvino_model(core, data), "CPU", hints).create_infer_request()
        names = [tensor.any_name for tensor in request.model_outputs]

        def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
            results = request.infer(dict(feeds), share_inputs=True)
            return {name: results[name] for name in names}

        return run

    return open_graph


def openvino_model(core: Any, data: bytes) -> Any:
    """A graph of a bundle at batch 1, not yet compiled."""
    model = core.read_model(data)
    model.reshape({t.any_name: [1 if dim.is_dynamic else dim for dim in t.partial_shape] for t in model.inputs})
    return model
