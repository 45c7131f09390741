"""What every arm of the arena is given: the same bundle, speech, steps and threads; and what an arm is."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.parts import JSON
from runtime.audio import load_speech
from runtime.bench import synthetic_speech
from runtime.bundle import Bundle, read_bundle
from runtime.machine import usable_cores
from runtime.noise import seeded_noise
from runtime.specs import SAMPLE_RATE

Pixels = npt.NDArray[np.uint8]
Pcm = npt.NDArray[np.float32]

PARITY_DB = 60.0
"""What an arm that computes the same numbers in float32 must reach before it is timed: PSNR to ours on the CPU."""


class BadParityError(Exception):
    """An arm that should draw the reference's portraits draws others; its time would mean nothing."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One arm's work. `threads`: None for all cores, by each engine's own default where it has one."""

    folder: Path
    network: str
    steps: int
    threads: int | None

    @functools.cached_property
    def bundle(self) -> Bundle:
        """The bundle with its own graphs, in float32, verified. Raises the BundleXxx errors."""
        return read_bundle(self.folder)

    @functools.cached_property
    def speech(self) -> tuple[Pcm, int]:
        """Six seconds of PCM in memory and their rate, as a caller has them."""
        return synthetic_speech(), SAMPLE_RATE

    @property
    def cores(self) -> int:
        """Threads as a number."""
        return usable_cores() if self.threads is None else self.threads

    @property
    def latent(self) -> tuple[int, int, int, int]:
        """[1, C, h, w]"""
        return 1, *dataclasses.astuple(self.bundle.manifest.latent)

    def window(self) -> Pcm:
        """The speech as the encoder takes it, float32 [1, 96000]; part of every timed call, in every arm."""
        return load_speech(self.speech)[None]

    def noise(self, seed: int) -> npt.NDArray[np.float32]:
        """float32 [1, C, h, w]"""
        return seeded_noise(seed, self.latent)


class Peer(Protocol):
    """An arm: a way to draw one portrait, batch 1."""

    def prepare(self) -> JSON:
        """What happens once: load, compile, warm up; returns what is worth telling."""

    def draw(self, seed: int) -> Pixels:
        """uint8 [H, W, 3], from PCM in memory to pixels in memory."""

    def close(self) -> None:
        """Give everything back."""


def check_parity(task: Task, peer: Peer, seeds: int = 2) -> float:
    """PSNR in dB of a peer's portraits to ours on the CPU. Raises BadParityError where it is below PARITY_DB."""
    import runtime
    from runtime.portrait import psnr

    with runtime.load(task.folder, device="cpu", threads=task.cores, precision="fp32") as ours:
        wanted = [ours.generate(task.speech, seed=seed, steps=task.steps).image for seed in range(seeds)]
    found = psnr(np.stack(wanted), np.stack([peer.draw(seed) for seed in range(seeds)]))
    if found < PARITY_DB:
        raise BadParityError(f"{found:.1f} dB to ours on the CPU; float32 on the same weights must reach {PARITY_DB:g}")
    return found
