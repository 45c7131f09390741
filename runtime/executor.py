"""What a pipeline needs of a device: voices and seeds in, portraits out. And the executor that goes step by step.

An executor has the graphs of one bundle open on one device. The stepwise one runs three sessions and drives the loop
from the host, on any backend that opens single graphs; a device that can do better has an executor of its own
(`runtime.backends.tensorrt_executor`: the whole portrait in one launch).
"""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from .backends.base import Arrays, Session, Settings, Tensor
from .bundle import Bundle, StepTable
from .errors import BackendFailed
from .noise import seeded_noise
from .portrait import Timings
from .watch import Watch

MAX_BATCH = 8
"""Portraits made at once; longer lists are made in parts, so that memory does not grow with them."""

Image = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Work:
    """What one call draws. `voices`: pcm float32 [S, samples], or with `encoded` conditions float32 [S, tokens, width]
    as `Executor.encode` gives them; `seeds`: K of them, and S is K, or 1 for one voice for all.

    `options`: the values of all options of the contract by name; a graph is given those it has an input for. `watch`:
    told of the steps done, of all that there are; raises what ends the call.
    """

    voices: npt.NDArray[np.float32]
    seeds: list[int]
    table: StepTable
    options: Mapping[str, float]
    encoded: bool = False
    watch: Watch = dataclasses.field(default_factory=Watch)

    @property
    def steps(self) -> int:
        """Denoising steps of one portrait."""
        return len(self.table.timesteps)


class Clock:
    """Sums milliseconds: "audio", "graphs" (all of an executor's work), and what a stepwise executor tells beside:
    "encoder", "decoder" and one entry per step index.
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter_ns()
        self._spent: dict[str | int, int] = {}

    @contextmanager
    def measure(self, stage: str | int) -> Iterator[None]:
        """Add the time of the `with` block to `stage`."""
        begin = time.perf_counter_ns()
        yield
        self._spent[stage] = self._spent.get(stage, 0) + time.perf_counter_ns() - begin

    def timings(self) -> Timings:
        """What has been measured; `total` is the time since this clock was made."""
        total = time.perf_counter_ns() - self._begin
        spent = {stage: value / 1e6 for stage, value in self._spent.items()}
        steps = tuple(value for stage, value in sorted((s, v) for s, v in spent.items() if isinstance(s, int)))
        return Timings(
            spent.get("audio", 0.0), spent.get("encoder"), steps, spent.get("decoder"), spent["graphs"], total / 1e6
        )


class Executor(abc.ABC):
    """A bundle's graphs on one device. Not for two threads at once: the pipeline holds a lock around it.

    `precision`: what most of the work of a portrait is computed in, one of `precision.PRECISIONS`. `prepared`: all its
    graphs came as `s2f prepare` has made them; else some were optimised or compiled at load.
    """

    precision: str
    prepared: bool

    @abc.abstractmethod
    def paint(self, work: Work, clock: Clock) -> list[Image]:
        """K images uint8 [H, W, 3], one per seed. Raises BackendFailed, DeviceOutOfMemory, what `work.watch` raises."""

    @abc.abstractmethod
    def encode(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Conditions float32 [S, tokens, width] of pcm float32 [S, samples]. Raises as `paint`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give memory and threads back. Closing twice is harmless."""


class StepwiseExecutor(Executor):
    """The loop on the host: encoder once per voice, the unet's session once per step, decoder."""

    def __init__(self, bundle: Bundle, opener: type[Session], settings: Settings) -> None:
        """Open the three graphs of a verified bundle. Raises what `Session` raises."""
        self._latent, self._history = bundle.manifest.latent, bundle.manifest.history
        self.precision = "fp32" if settings.precision == "auto" else settings.precision
        self._sessions: dict[str, Session] = {}
        try:
            for name, stage in bundle.manifest.stages.items():
                data, tensors = bundle.files[name], (stage.inputs, stage.outputs)
                self._sessions[name] = opener(name, data, *tensors, settings, source=bundle.sha256_of(name))
        except BaseException:
            self.close()
            raise
        self.prepared = all(session.prepared for session in self._sessions.values())

    def paint(self, work: Work, clock: Clock) -> list[Image]:
        """See `Executor.paint`. One voice with several seeds is encoded once."""
        one_voice = len(work.voices) < len(work.seeds)
        shared = self._condition(work, slice(None), clock, keep=False) if one_voice else None
        images: list[Image] = []
        portions = parts(len(work.seeds))
        for number, part in enumerate(portions):
            seeds = work.seeds[part]
            if isinstance(shared, np.ndarray):
                condition: Tensor = np.repeat(shared, len(seeds), axis=0)
            else:
                condition = self._condition(work, part, clock, keep=True)
            steps = number * work.steps, len(portions) * work.steps
            images += self._decode(self._denoise(condition, seeds, work, steps, clock), clock)
        return images

    def encode(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `Executor.encode`."""
        return np.concatenate(
            [np.asarray(self._sessions["encoder"].run({"pcm": pcm[p]})["condition"]) for p in parts(len(pcm))]
        )

    def close(self) -> None:
        """Close the sessions."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def _condition(self, work: Work, part: slice, clock: Clock, *, keep: bool) -> Tensor:
        """The conditions of some of the voices, float32 [B, tokens, width]."""
        if work.encoded:
            return work.voices[part]
        with clock.measure("encoder"):
            return self._sessions["encoder"].run({"pcm": work.voices[part]}, keep=keep)["condition"]

    def _denoise(self, condition: Tensor, seeds: list[int], work: Work, steps: tuple[int, int], clock: Clock) -> Tensor:
        """Seeded noise to a latent, float32 [B, C, h, w]: one run of the unet graph per step of the table.

        `steps`: those done before, and those in all, for the watch.
        """
        unet, shape = self._sessions["unet"], (self._latent.channels, self._latent.height, self._latent.width)
        noise = np.stack([seeded_noise(seed, shape) for seed in seeds])
        given: Arrays = {
            "condition": condition,
            **{name: np.array([v], np.float32) for name, v in work.options.items() if name in unet.inputs},
        }
        state: Arrays = {"latent": noise, "history": np.zeros_like(noise)} if self._history else {"latent": noise}
        last = work.steps - 1
        work.watch(*steps)
        for step in range(last + 1):
            row = np.array([work.table.first_row + step], dtype=np.int64)
            with clock.measure(step):
                # The last latent comes to the host, where the session looks for NaN, which no later step would hide.
                result = unet.run({**state, **given, "step": row}, keep=step < last)
            state = {name: result[f"{name}_next"] for name in state}
            work.watch(steps[0] + step + 1, steps[1])
        return state["latent"]

    def _decode(self, latent: Tensor, clock: Clock) -> list[Image]:
        """A latent float32 [B, C, h, w] to B images uint8 [H, W, 3], each with its own memory."""
        with clock.measure("decoder"):
            images = np.asarray(self._sessions["decoder"].run({"latent": latent})["image"])
        return [image.copy() for image in images] if len(images) > 1 else [images[0]]


def portrait(pixels: Image) -> Image:
    """A copy of one image of a whole-portrait graph, in which nobody can look for NaN on the way.

    Raises BackendFailed for one flat colour: that is what NaN look like after the cast to uint8.
    """
    if pixels.min() == pixels.max():
        raise BackendFailed(
            "The device drew one flat colour, as it does where numbers leave the range of fp16. Use --device cpu, or "
            "for tensorrt run `s2f-export engines BUNDLE --precision fp32`, and please report it"
        )
    return np.array(pixels)


def parts(count: int, size: int = MAX_BATCH) -> list[slice]:
    """0..count in slices of at most `size`."""
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]
