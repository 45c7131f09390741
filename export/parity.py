"""Does every graph compute what training computes? ONNX Runtime against the trained modules, on seeded inputs.

The reference is training's own code: its modules (own attention, own time embedding), its prior shift, its sampling
loop. Nothing of the export wrappers is in it, so that a mistake in a wrapper cannot hide in both sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.modules import StepRows
from runtime.bundle import SAMPLE_RATE, SAMPLES
from runtime.errors import BackendFailed, ParityFailed
from training.checkpoint import System
from training.prior_shift import prior_shift
from training.sampler import sample
from training.sampling import StepTable

Array = NDArray[Any]
Feeds = dict[str, Array]

CASES = 16
TOLERANCE = 1e-4
LEVELS = 1.0
CHAIN_LEVELS = 2.0
CHAIN_BATCH = 3
CHAIN_GUIDANCE = 2.0


@dataclass(frozen=True)
class StageParity:
    """The largest difference of one graph over all its cases, in units of the output (grey levels for the decoder)."""

    stage: str
    cases: int
    max_abs: float
    tolerance: float


@dataclass(frozen=True)
class ParityReport:
    """Every graph, then the whole chain: the largest difference in grey levels and the share of pixels that differ."""

    stages: tuple[StageParity, ...]
    chain_steps: int
    chain_max_levels: float
    chain_differing: float


def check_parity(system: System, rows: StepRows, graphs: Mapping[str, bytes]) -> ParityReport:
    """Compare all graphs, then the chain. Raises ParityFailed (what, case, difference), BackendFailed (by ORT)."""
    sessions = {stage: _session(stage, data) for stage, data in graphs.items()}
    stages = []
    with torch.no_grad():
        for stage, cases in (("encoder", _encoder_cases), ("unet", _step_cases), ("decoder", _decoder_cases)):
            stages.append(_check_stage(stage, sessions[stage], cases(system, rows)))
        steps = min(rows.tables)
        levels, differing = _check_chain(system, rows, sessions, steps)
    return ParityReport(tuple(stages), steps, levels, differing)


@dataclass(frozen=True)
class _Case:
    label: str
    feeds: Feeds
    expected: tuple[Tensor, ...]
    tolerance: float


def _check_stage(stage: str, session: Any, cases: Iterator[_Case]) -> StageParity:
    worst, loosest, count = 0.0, 0.0, 0
    for case in cases:
        outputs = session.run(None, case.feeds)
        difference = max(_difference(a, b.numpy()) for a, b in zip(outputs, case.expected, strict=True))
        if not difference <= case.tolerance:  # also true for NaN
            raise ParityFailed(
                f"{stage}: case {case.label} differs from torch by {difference:.3g}, {case.tolerance:.3g} is allowed; "
                "the bundle was not written. Export again with --store float32 to tell storage from operators."
            )
        worst, loosest, count = max(worst, difference), max(loosest, case.tolerance), count + 1
    return StageParity(stage, count, worst, loosest)


def _difference(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("nan")
    return float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())


def _session(stage: str, data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise BackendFailed(f"ONNX Runtime refuses the exported {stage}: {error}; report the model's layers") from error


def speech_like(seed: int, batch: int) -> Array:
    """float32 [batch, 96000]: a buzz of gliding pitch with pauses and noise, or noise alone; peaks under 1."""
    rng = np.random.default_rng(seed)
    time = np.arange(SAMPLES) / SAMPLE_RATE
    clips = []
    for _ in range(batch):
        pitch = rng.uniform(80, 280) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.2, 2) * time))
        phase = np.cumsum(pitch) / SAMPLE_RATE
        buzz = np.exp(-rng.uniform(2, 8) * (phase % 1))  # decaying pulses: every harmonic is in it
        spoken = (np.sin(2 * np.pi * rng.uniform(1, 4) * time) > -0.5) * (seed % 4 != 3)
        clip = buzz * spoken + rng.normal(0, 10 ** rng.uniform(-4, -1), SAMPLES)
        clips.append(rng.uniform(0.05, 0.95) * clip / np.abs(clip).max())
    return np.stack(clips).astype(np.float32)


def _encoder_cases(system: System, rows: StepRows) -> Iterator[_Case]:
    for seed in range(CASES):
        pcm = speech_like(seed, _batch(seed))
        yield _Case(f"seed {seed}", {"pcm": pcm}, (_condition(system, _embedding(system, pcm)),), TOLERANCE)


def _step_cases(system: System, rows: StepRows) -> Iterator[_Case]:
    voices = _embedding(system, speech_like(1000, 4))
    places = [(n, i) for n, table in rows.tables.items() for i in range(len(table))]
    first_and_last = [(n, i) for n in rows.tables for i in dict.fromkeys((0, n - 1))]
    spread = [places[k] for k in np.linspace(0, len(places) - 1, CASES).astype(int)]
    for seed, (steps, index) in enumerate([*first_and_last, *spread]):
        table, batch, guidance = rows.tables[steps], _batch(seed), (0.0, 1.0, 2.0, 5.0)[seed % 4]
        embedding = voices.roll(seed, dims=0)[:batch]
        x = _noise(system, 1000 + seed, batch)
        before, after = reference_step(system, embedding, x, table, index, guidance=guidance)
        feeds = {
            "latent": before[0].numpy(),
            "history": before[1].numpy(),
            "condition": _condition(system, embedding).numpy(),
            "step": np.array([rows.first_row[steps] + index], np.int64),
            "guidance": np.array([guidance], np.float32),
        }
        # x0 = P·x + Q·net: where the prediction is divided by a small alpha, so is its rounding. |Q| < 1 for v.
        scale = max(1.0, float(abs(table.Q[index])))
        yield _Case(f"seed {seed}, step {index} of {steps}, guidance {guidance:g}", feeds, after, TOLERANCE * scale)


def _decoder_cases(system: System, rows: StepRows) -> Iterator[_Case]:
    for seed in range(CASES):
        x = _noise(system, 2000 + seed, _batch(seed)) * (0.5 + seed / CASES)
        yield _Case(f"seed {seed}", {"latent": _shifted(system, x).numpy()}, (reference_image(system, x),), LEVELS)


def _batch(seed: int) -> int:
    return 3 if seed % 4 == 1 else 1


def _noise(system: System, seed: int, batch: int) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((batch, *system.prior.shape))
    return torch.from_numpy(values.astype(np.float32))


def _embedding(system: System, pcm: Array) -> Tensor:
    embedding: Tensor = system.speech_encoder(torch.from_numpy(pcm))
    return embedding


def _condition(system: System, embedding: Tensor) -> Tensor:
    return system.denoiser.tokens(embedding)


def reference_sample(system: System, embedding: Tensor, noise: Tensor, table: StepTable, guidance: float) -> Tensor:
    """x float32 [batch, C, h, w] after the rows of `table`, without the prior: training's sampler."""
    shift = prior_shift(system.prior_mode, system.prior_weight, system.prior)
    clip = system.config.diffusion.latent_clip
    return sample(system.denoiser, embedding, noise, table, shift, guidance=guidance, clip=clip)


def reference_step(
    system: System, embedding: Tensor, x: Tensor, table: StepTable, index: int, *, guidance: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """One step of training's sampler, seen from outside: (x', x0 of the step before), (x'_next, x0).

    The sampler starts at x, one step earlier, so that the history is a real one; at index 0 x' is x, the pure noise.
    """

    def run(rows: StepTable) -> Tensor:
        return reference_sample(system, embedding, x, rows, guidance)

    before = x, torch.zeros_like(x)
    if index > 0:
        earlier = _rows(table, index - 1, index)
        before = _shifted(system, run(earlier)), run(_until_denoised(earlier))
    both = _rows(table, max(index - 1, 0), index + 1)
    return before, (_shifted(system, run(both)), run(_until_denoised(both)))


def _rows(table: StepTable, start: int, stop: int) -> StepTable:
    return StepTable(table.solver, *(getattr(table, name)[start:stop] for name in ("timesteps", *"PQABC")))


def _until_denoised(table: StepTable) -> StepTable:
    """The same table, whose last row gives its x0 instead of x_next."""
    last = {name: getattr(table, name).copy() for name in "ABC"}
    for name, value in (("A", 0), ("B", 1), ("C", 0)):
        last[name][-1] = value
    return dataclasses.replace(table, **last)


def _shifted(system: System, x: Tensor) -> Tensor:
    scale, offset = prior_shift(system.prior_mode, system.prior_weight, system.prior)
    return scale * x + offset


def reference_image(system: System, x: Tensor) -> Tensor:
    """uint8 [batch, H, W, 3] of the normalised latent x, which holds no prior."""
    image = system.face_decoder(x * system.latent_std[:, None, None] + system.latent_mean[:, None, None])
    levels: Tensor = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


def _start(system: System) -> tuple[Array, Tensor]:
    return speech_like(3000, CHAIN_BATCH), _noise(system, 3000, CHAIN_BATCH)


def _check_chain(system: System, rows: StepRows, sessions: Mapping[str, Any], steps: int) -> tuple[float, float]:
    """The largest difference in grey levels and the share of values that differ. Raises ParityFailed."""
    ours, theirs = _chain_onnx(system, rows, sessions, steps), chain_reference(system, rows, steps)
    levels = _difference(ours, theirs)
    if not levels <= CHAIN_LEVELS:
        raise ParityFailed(
            f"whole chain of {steps} steps: portraits differ from torch by {levels:g} grey levels, "
            f"{CHAIN_LEVELS:g} are allowed, though every graph is within its own limit; the bundle was not written. "
            "Small differences grow from step to step: look for exploding latents in the run's samples."
        )
    return levels, float((ours != theirs).mean())


def _chain_onnx(system: System, rows: StepRows, sessions: Mapping[str, Any], steps: int) -> Array:
    pcm, noise = _start(system)
    (condition,) = sessions["encoder"].run(None, {"pcm": pcm})
    latent, history = noise.numpy(), np.zeros(noise.shape, np.float32)
    guidance = np.array([CHAIN_GUIDANCE], np.float32)
    for index in range(steps):
        feeds = {"latent": latent, "history": history, "condition": condition, "guidance": guidance}
        feeds["step"] = np.array([rows.first_row[steps] + index], np.int64)
        latent, history = sessions["unet"].run(None, feeds)
    (image,) = sessions["decoder"].run(None, {"latent": latent})
    return np.asarray(image)


def chain_reference(system: System, rows: StepRows, steps: int) -> Array:
    """Portraits uint8 [3, H, W, 3] of the seeded parity chain, as training draws its previews."""
    pcm, noise = _start(system)
    with torch.no_grad():
        x = reference_sample(system, _embedding(system, pcm), noise, rows.tables[steps], CHAIN_GUIDANCE)
        return np.asarray(reference_image(system, x).numpy())
