"""The sampler over three sessions of any precision: what calibration observes, and what it compares.

The same loop as `runtime.executor.StepwiseExecutor`, one voice and one seed at a time, with every latent kept and every
tensor shown to whoever observes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from calibration.quality import Drawn
from runtime.backends import Settings
from runtime.backends.ort import open_session
from runtime.bundle import STAGES, Manifest
from runtime.noise import seeded_noise

Array = NDArray[Any]
See = Callable[[str, int, dict[str, Array]], None]
"""Told the stage, the row of the step tables (0 outside the unet) and the values by name."""


@dataclass(frozen=True)
class Pair:
    """One portrait to draw: `pcm` float32 [96000], the seed of its noise, and the number of steps."""

    pcm: NDArray[np.float32]
    seed: int
    steps: int


def open_graph(model: ModelProto | bytes, what: str) -> Any:
    """A session of a graph on the CPU with one thread, so that sums always run in one order. Raises BackendFailed."""
    data = model if isinstance(model, bytes) else model.SerializeToString(deterministic=True)
    return open_session(data, Settings("cpu", 1), f"the {what} graph")


class Sampler:
    """Three sessions by stage, each with the outputs its graph has."""

    def __init__(self, manifest: Manifest, sessions: Mapping[str, Any]) -> None:
        self.manifest = manifest
        self.sessions = dict(sessions)
        self._outputs = {stage: [o.name for o in session.get_outputs()] for stage, session in sessions.items()}
        names = {value.name for value in self.sessions["unet"].get_inputs()}
        options = {"guidance": manifest.guidance.default, "prior_weight": manifest.prior.weight}
        self._options = {name: np.array([value], np.float32) for name, value in options.items() if name in names}

    @classmethod
    def of(cls, manifest: Manifest, graphs: Mapping[str, ModelProto | bytes]) -> Sampler:
        """Open the graphs of all stages. Raises BackendFailed."""
        return cls(manifest, {stage: open_graph(graphs[stage], stage) for stage in STAGES})

    def draw(self, pairs: Sequence[Pair], see: See | None = None) -> Drawn:
        """Portraits and latents of pairs of one number of steps. A voice that follows itself is encoded once."""
        images, latents, condition = [], [], None
        for index, pair in enumerate(pairs):
            if condition is None or pairs[index - 1].pcm is not pair.pcm:
                condition = self.encode(pair.pcm, see)
            path = self._denoise(condition, pair, see)
            latents.append(np.concatenate(path))
            images.append(self._run("decoder", 0, {"latent": path[-1]}, see)["image"][0])
        return Drawn(np.stack(images), np.stack(latents))

    def encode(self, pcm: NDArray[np.float32], see: See | None = None) -> Array:
        """The condition of one voice, float32 [1, tokens, width]."""
        return self._run("encoder", 0, {"pcm": pcm[None]}, see)["condition"]

    def _denoise(self, condition: Array, pair: Pair, see: See | None) -> list[Array]:
        """The noise and the latent after each step, float32 [1, C, h, w] each."""
        latent, table = self.manifest.latent, self.manifest.table(pair.steps)
        noise = seeded_noise(pair.seed, (latent.channels, latent.height, latent.width))[None]
        state = {"latent": noise, "history": np.zeros_like(noise)} if self.manifest.history else {"latent": noise}
        path = [noise]
        for row in range(table.first_row, table.first_row + pair.steps):
            feeds = {**state, **self._options, "condition": condition, "step": np.array([row], np.int64)}
            made = self._run("unet", row, feeds, see)
            state = {name: made[f"{name}_next"] for name in state}
            path.append(state["latent"])
        return path

    def _run(self, stage: str, row: int, feeds: dict[str, Array], see: See | None) -> dict[str, Array]:
        values = self.sessions[stage].run(None, feeds)
        named = dict(zip(self._outputs[stage], values, strict=True))
        if see is not None:
            see(stage, row, {**feeds, **named})
        return named
