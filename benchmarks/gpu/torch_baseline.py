"""The same networks in PyTorch, as somebody would run them who has no TensorRT: eager, captured, compiled; float16.

The modules are those the graphs are exported from (`export.modules`), with the configuration of a shipped model and
random weights, which take as long as trained ones. What the exporter leaves out because nothing reads it (embedding the
timestep) is left out here too. The front end stays float32, as in the engines; all else is float16.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.gpu.parts import JSON
from export.modules import DecoderGraph, EncoderGraph, StepRows, step_graph
from runtime.noise import seeded_noise
from training.arms import ARMS, GUIDANCE
from training.checkpoint import Origin, System
from training.config import load_config
from training.models.denoiser import Denoiser
from training.models.face import build_face_decoder, build_slim_decoder, latent_shape
from training.models.speech import build_speech_encoder
from training.sampling import alphas_cumprod

MATRIX = 8192
PRODUCTS = 20
NOBODY = "random weights"

Run = Callable[[], Tensor]


def random_system(network: str) -> System:
    """A system of a configuration (a shipped name or a TOML file) as training would leave it, but for the weights."""
    config = load_config(network)
    torch.manual_seed(0)
    shape = latent_shape(config)
    return System(
        config=config,
        arm="shortcut" if config.shortcut.steps else "diffusion",
        speech_encoder=build_speech_encoder(config).eval(),
        denoiser=Denoiser(config).eval(),
        face_decoder=(build_slim_decoder(config) if config.decoder.steps else build_face_decoder(config)).eval(),
        latent_mean=torch.zeros(shape[0]),
        latent_std=torch.ones(shape[0]),
        prior=torch.randn(shape),
        alphas_cumprod=alphas_cumprod(config.diffusion.schedule, config.diffusion.timesteps),
        origin=Origin("", "", NOBODY, NOBODY, ""),
    )


class Painter(nn.Module):
    """pcm float32 [batch, 96000], noise float32 [batch, C, h, w] → image uint8 [batch, H, W, 3]."""

    def __init__(self, system: System, steps: int, kind: torch.dtype = torch.float16) -> None:
        super().__init__()
        rows = StepRows.of({steps: system.table(steps, ARMS[system.arm].solvers[0])})
        self.voice = _Voice(EncoderGraph(system), kind)
        self.step = step_graph(system, rows).to(kind)
        self.decoder = DecoderGraph(system).to(kind)
        self.steps, self.history, self.kind = steps, rows.history, kind
        low, high = system.prior_weights
        value = GUIDANCE if rows.history else system.prior_weight if low < high else None
        self.register_buffer("option", None if value is None else torch.tensor([value], dtype=kind))
        self.register_buffer("indices", torch.arange(steps)[:, None])
        self.requires_grad_(False)
        _leave_out_time(self.step)

    def forward(self, pcm: Tensor, noise: Tensor) -> Tensor:
        condition = self.voice(pcm)
        latent = noise.to(self.kind)
        history = torch.zeros_like(latent)
        option = () if self.option is None else (self.option,)
        for index in cast("Tensor", self.indices).unbind():
            if self.history:
                latent, history = self.step(latent, history, condition, index, *option)
            else:
                latent = self.step(latent, condition, index, *option)
        return self.decoder(latent)  # type: ignore[no-any-return]


class _Voice(nn.Module):
    """The encoder's graph with its front end in float32."""

    def __init__(self, graph: EncoderGraph, kind: torch.dtype) -> None:
        super().__init__()
        self.graph, self.kind = graph.to(kind), kind
        speech: Any = graph.speech_encoder
        self.split = hasattr(speech, "frontend")
        if self.split:
            speech.frontend.float()

    def forward(self, pcm: Tensor) -> Tensor:
        graph: Any = self.graph
        if self.split:
            embedding = graph.speech_encoder.embed(graph.speech_encoder.frontend(pcm).to(self.kind))
        else:
            embedding = graph.speech_encoder(pcm.to(self.kind))
        return graph.matrices(graph.denoiser.tokens(embedding))  # type: ignore[no-any-return]


class _Nothing(nn.Module):
    def forward(self, *values: object) -> None:
        return None


def _leave_out_time(step: Any) -> None:
    """The embedding of timestep and step size: the row tables hold what came of it, and no graph computes it."""
    unet = step.denoiser.unet
    unet.get_time_embed = lambda sample, timestep: None
    unet.time_embedding = _Nothing()
    unet.class_embedding = None


class Canvas:
    """Buffers of one portrait on host and device, and the way between them; the same for every way to run."""

    def __init__(self, system: System, pcm: npt.NDArray[np.float32], device: str) -> None:
        """`pcm`: float32 [96000], laid into pinned memory anew for every portrait."""
        self._shape, self._pcm = tuple(system.prior.shape), torch.from_numpy(pcm[None].copy())
        on_gpu = device == "cuda"
        self._host = [torch.empty((1, pcm.size), pin_memory=on_gpu), torch.empty((1, *self._shape), pin_memory=on_gpu)]
        self.device = [torch.zeros_like(value, device=device) for value in self._host]
        self._image: Tensor | None = None
        self._on_gpu = on_gpu

    def draw(self, run: Run, seed: int) -> npt.NDArray[np.uint8]:
        """From host memory to host memory: uint8 [H, W, 3]."""
        self._host[0].copy_(self._pcm)
        self._host[1].copy_(torch.from_numpy(seeded_noise(seed, self._shape)[None]))
        for target, source in zip(self.device, self._host, strict=True):
            target.copy_(source, non_blocking=True)
        image = run()
        if self._image is None:
            self._image = torch.empty(image.shape, dtype=image.dtype, pin_memory=self._on_gpu)
        self._image.copy_(image, non_blocking=True)
        if self._on_gpu:
            torch.cuda.synchronize()
        pixels: npt.NDArray[np.uint8] = self._image[0].numpy().copy()
        return pixels


def eager(painter: Painter, canvas: Canvas) -> Run:
    """Kernel by kernel."""
    return lambda: cast("Tensor", painter(*canvas.device))


def captured(painter: Painter, canvas: Canvas) -> Run:
    """Eager once, captured into a CUDA graph, replayed."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):
            painter(*canvas.device)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        image: Tensor = painter(*canvas.device)

    def replay() -> Tensor:
        graph.replay()
        return image

    return replay


def compiled(painter: Painter, canvas: Canvas, **options: Any) -> Run:
    """torch.compile of the whole portrait in one; by default max-autotune, which brings CUDA graphs of its own."""
    program = torch.compile(painter, fullgraph=True, dynamic=False, **(options or {"mode": "max-autotune"}))
    for _ in range(4):  # compile, warm up, record, replay
        program(*canvas.device)
    return lambda: program(*canvas.device)


WAYS = {
    "torch eager fp16": (eager, torch.contiguous_format),
    "torch eager fp16, channels last": (eager, torch.channels_last),
    "torch graph fp16": (captured, torch.contiguous_format),
    "torch graph fp16, channels last": (captured, torch.channels_last),
    "torch compile max-autotune fp16": (compiled, torch.contiguous_format),
}
COMPILED = "torch compile max-autotune fp16"


class TorchArm:
    """One way to run the networks in PyTorch; see `benchmarks.gpu.arms.Way`."""

    def __init__(self, name: str, network: str, steps: int, pcm: npt.NDArray[np.float32], device: str) -> None:
        self._name, self._device = name, device
        torch.backends.cudnn.benchmark = True
        system = random_system(network)
        self._painter, self._canvas = Painter(system, steps), Canvas(system, pcm, device)
        self._run: Run | None = None

    def prepare(self) -> JSON:
        """Compile, capture, warm up: what happens once."""
        way, layout = WAYS[self._name]
        begin = time.monotonic()
        painter = self._painter.to(self._device)
        if layout is torch.channels_last:
            painter = painter.to(memory_format=layout)  # type: ignore[call-overload]
        with torch.no_grad():
            reference = self._canvas.draw(eager(painter, self._canvas), 0)
            self._run = way(painter, self._canvas)
            image = self._canvas.draw(self._run, 0)
        parameters = sum(value.numel() for value in painter.state_dict().values())
        return {
            "seconds": round(time.monotonic() - begin, 1),
            "weights": "random",
            "numbers": parameters,
            "to_eager_max_levels": int(np.abs(image.astype(np.int16) - reference).max()),
            "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        }

    def draw(self, seed: int) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, 3]"""
        if self._run is None:
            raise RuntimeError("prepare first")
        with torch.no_grad():
            return self._canvas.draw(self._run, seed)

    def close(self) -> None:
        """Let go of networks and graphs."""
        self._run = None


def missing(device: str) -> str:
    """Why PyTorch cannot run on a device here, empty if it can."""
    return "" if device != "cuda" or torch.cuda.is_available() else "torch sees no GPU"


def probe(device: str) -> JSON:
    """What the card reaches in large matrix products of random numbers, TFLOP/s; TF32 is off for float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    size = MATRIX if device == "cuda" else 256
    found: JSON = {"size": size, "device": torch.cuda.get_device_name(0) if device == "cuda" else "cpu"}
    for name, kind in (("fp16_tflops", torch.float16), ("fp32_tflops", torch.float32)):
        a, b = (torch.randn(size, size, dtype=torch.float32, device=device).to(kind) for _ in range(2))
        for _ in range(3):
            a @ b
        found[name] = round(2 * size**3 * PRODUCTS / _seconds(functools.partial(torch.matmul, a, b), device) / 1e12, 2)
    return found


def _seconds(call: Callable[[], object], device: str) -> float:
    """All products together."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(PRODUCTS):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin
