"""Ways to draw one portrait that are compared in one run: TensorRT, PyTorch, ONNX Runtime. All from a seed to pixels.

Which of them an interpreter can run depends on what it has installed, so several interpreters share the work (see
`benchmarks.gpu.worker`); each offers what `here` finds, by the same names.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.parts import JSON
from benchmarks.gpu.plan import Arm, Job, Ready, inputs_of, noise_of, record_of, work_of
from runtime.backends.base import Settings
from runtime.bundle import Bundle
from runtime.cache import Cache
from runtime.errors import S2FError
from runtime.executor import Clock, Executor
from runtime.machine import usable_cores

Pixels = npt.NDArray[np.uint8]
Maker = Callable[[], "Way"]


class Way(Protocol):
    """One way to draw portraits of the first voice, batch 1, in the default number of steps."""

    def prepare(self) -> JSON:
        """What happens once; returns what is known of it."""

    def draw(self, seed: int) -> Pixels:
        """uint8 [H, W, 3], from PCM and seed in host memory to pixels in host memory."""

    def close(self) -> None:
        """Give everything back."""


class Executed:
    """An executor of the runtime."""

    def __init__(self, job: Job, open_it: Callable[[], Executor], about: JSON) -> None:
        self._job, self._open, self._about = job, open_it, about
        self._executor: Executor | None = None

    def prepare(self) -> JSON:
        """Open, and draw once."""
        self._executor = self._open()
        self.draw(0)
        return self._about

    def draw(self, seed: int) -> Pixels:
        """See `Way`."""
        if self._executor is None:
            raise RuntimeError("prepare first")
        work = work_of(self._job.bundle.manifest, [self._job.voices[0]], [seed], self._job.wanted.steps[0])
        return self._executor.paint(work, Clock())[0]

    def close(self) -> None:
        """See `Way`."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None


def here(job: Job) -> tuple[dict[str, Maker], dict[str, str]]:
    """(name → maker of all that can run in this interpreter, name of a family → why it cannot)."""
    ways: dict[str, Maker] = {}
    missing: dict[str, str] = {}
    for family, find in (("tensorrt", _tensorrt), ("torch", _torch), ("onnxruntime", _onnxruntime)):
        try:
            found = find(job)
        except (S2FError, ImportError) as reason:
            missing[family] = f"{type(reason).__name__}: {reason}"[:300]
        else:
            ways.update(found)
    return ways, missing


def name_of(arm: Arm) -> str:
    """What a TensorRT arm is called among the ways."""
    return f"tensorrt {arm.form} {arm.precision}"


def _tensorrt(job: Job) -> dict[str, Maker]:
    ready = Ready(job.bundle.manifest, Cache.default())
    arms = [
        arm
        for precision in job.wanted.precisions
        for arm in (Arm(form, precision, 1, job.wanted.steps[0]) for form in job.wanted.forms)
        if ready.has(arm.opened())
    ]
    return {name_of(arm): lambda arm=arm: Executed(job, lambda: _open_tensorrt(job, arm), {}) for arm in arms}  # type: ignore[misc]


def _open_tensorrt(job: Job, arm: Arm) -> Executor:
    from runtime.backends.tensorrt_executor import TensorRTExecutor

    return TensorRTExecutor(job.bundle, Cache.default(), record=record_of([arm]))


def _torch(job: Job) -> dict[str, Maker]:
    if importlib.util.find_spec("torch") is None:
        raise ImportError("torch is not installed")
    from benchmarks.gpu import torch_baseline

    reason = torch_baseline.missing(job.torch_device)
    if reason:
        raise ImportError(reason)
    steps, pcm = job.wanted.steps[0], job.voices[0]
    return {
        name: lambda name=name: torch_baseline.TorchArm(name, job.network, steps, pcm, job.torch_device)  # type: ignore[misc]
        for name in torch_baseline.WAYS
    }


def _onnxruntime(job: Job) -> dict[str, Maker]:
    from runtime.backends import open_executor, select

    settings = Settings(select("cuda"), usable_cores())
    about = {"graphs": "the bundle's, float32", "cuda_graph": False}
    ways: dict[str, Maker] = {
        "onnxruntime cuda stages fp32": lambda: Executed(job, lambda: open_executor(job.bundle, settings), about)
    }
    if importlib.util.find_spec("onnx") is not None:
        ways |= {
            f"onnxruntime cuda pipeline {precision}": lambda precision=precision: Fused(job, precision)  # type: ignore[misc]
            for precision in job.wanted.precisions
        }
    return ways


class Fused:
    """The derived pipeline graph on ONNX Runtime's CUDA provider: inputs and output bound, one CUDA graph."""

    OPTIONS = {"enable_cuda_graph": "1", "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0"}
    PROVIDER = "CUDAExecutionProvider"

    def __init__(self, job: Job, precision: str) -> None:
        self._job, self._precision = job, precision
        self._session: Any = None

    def prepare(self) -> JSON:
        """Derive, open, run until the graph is captured. Raises BackendFailed, DeviceUnavailable."""
        import onnxruntime

        from export.derive import derive

        bundle: Bundle = self._job.bundle
        data = derive(bundle, "pipeline", batch=1, steps=self._job.wanted.steps[0], precision=self._precision)
        if hasattr(onnxruntime, "preload_dlls"):  # finds the CUDA libraries that torch brought
            onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(data, options, providers=[(self.PROVIDER, self.OPTIONS)])
        if self._session.get_providers()[:1] != [self.PROVIDER]:
            raise RuntimeError(f"ONNX Runtime runs on {self._session.get_providers()}")
        self._bind(onnxruntime.OrtValue)
        for seed in range(3):
            self.draw(seed)
        return {"graphs": f"derived pipeline, {self._precision}", "options": self.OPTIONS}

    def _bind(self, values: Any) -> None:
        """Everything at addresses that stay, as a captured graph wants it."""
        manifest = self._job.bundle.manifest
        given = inputs_of(manifest, self._job.voices[0][None], noise_of(manifest, 0))
        names = [node.name for node in self._session.get_inputs()]
        self._inputs = {name: values.ortvalue_from_numpy(np.ascontiguousarray(given[name]), "cuda", 0) for name in names}
        image = manifest.image
        self._image = values.ortvalue_from_shape_and_type((1, image.height, image.width, 3), np.uint8, "cuda", 0)
        self._binding = self._session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output("image", self._image)

    def draw(self, seed: int) -> Pixels:
        """See `Way`."""
        self._inputs["pcm"].update_inplace(self._job.voices[0][None])
        self._inputs["noise"].update_inplace(noise_of(self._job.bundle.manifest, seed))
        self._session.run_with_iobinding(self._binding)
        image: Pixels = self._image.numpy()[0]
        return image

    def close(self) -> None:
        """See `Way`."""
        self._binding = self._inputs = self._image = self._session = None
