"""Does every graph compute what training computes? ONNX Runtime against the trained modules, on seeded inputs.

The reference is written with the modules training uses (own attention, own time embedding, the two guidance branches
one after the other), not with the export wrappers, so that a mistake in a wrapper cannot hide in both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.modules import StepRows
from export.shift import prior_shift
from runtime.bundle import SAMPLE_RATE, SAMPLES
from runtime.errors import BackendFailed, ParityFailed
from training.checkpoint import System
from training.sampling import StepTable

Array = NDArray[Any]
Feeds = dict[str, Array]

CASES = 16
TOLERANCE = 1e-4
LEVELS = 1.0
CHAIN_BATCH = 3


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
    """Compare all graphs. Raises ParityFailed (stage, case, difference), BackendFailed (ORT refuses a graph)."""
    sessions = {stage: _session(stage, data) for stage, data in graphs.items()}
    stages = []
    with torch.no_grad():
        for stage, cases in (("encoder", _encoder_cases), ("unet", _step_cases), ("decoder", _decoder_cases)):
            stages.append(_check_stage(stage, sessions[stage], cases(system, rows)))
        steps = min(rows.tables)
        ours, theirs = _chain_onnx(system, rows, sessions, steps), chain_reference(system, rows, steps)
    difference = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
    return ParityReport(tuple(stages), steps, float(difference.max()), float((difference > 0).mean()))


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
        yield _Case(f"seed {seed}", {"pcm": pcm}, (_condition(system, pcm),), TOLERANCE)


def _step_cases(system: System, rows: StepRows) -> Iterator[_Case]:
    voices = _condition(system, speech_like(1000, 4))
    places = [(n, i) for n, table in rows.tables.items() for i in range(len(table))]
    first_and_last = [(n, i) for n in rows.tables for i in dict.fromkeys((0, n - 1))]
    spread = [places[k] for k in np.linspace(0, len(places) - 1, CASES).astype(int)]
    for seed, (steps, index) in enumerate([*first_and_last, *spread]):
        table, batch = rows.tables[steps], _batch(seed)
        rng = np.random.default_rng(1000 + seed)
        latent, history = (rng.standard_normal((batch, *system.prior.shape)).astype(np.float32) for _ in range(2))
        guidance = np.array([(0.0, 1.0, 2.0, 5.0)[seed % 4]], np.float32)
        condition = voices.roll(seed, dims=0)[:batch]
        history *= index > 0
        tensors = {"latent": torch.from_numpy(latent), "history": torch.from_numpy(history), "condition": condition}
        expected = reference_step(system, table, index, **tensors, guidance=float(guidance[0]))
        feeds = {
            **{name: tensor.numpy() for name, tensor in tensors.items()},
            "step": np.array([rows.first_row[steps] + index], np.int64),
            "guidance": guidance,
        }
        # x0 = P·x + Q·net: where the prediction is divided by a small alpha, so is its rounding.
        scale = max(1.0, float(abs(table.Q[index])))
        label = f"seed {seed}, step {index} of {steps}, guidance {guidance[0]:g}"
        yield _Case(label, feeds, expected, TOLERANCE * scale)


def _decoder_cases(system: System, rows: StepRows) -> Iterator[_Case]:
    for seed in range(CASES):
        rng = np.random.default_rng(2000 + seed)
        latent = rng.standard_normal((_batch(seed), *system.prior.shape)).astype(np.float32) * (0.5 + seed / CASES)
        yield _Case(f"seed {seed}", {"latent": latent}, (reference_image(system, torch.from_numpy(latent)),), LEVELS)


def _batch(seed: int) -> int:
    return 3 if seed % 4 == 1 else 1


def _condition(system: System, pcm: Array) -> Tensor:
    denoiser: Any = system.denoiser
    condition: Tensor = denoiser.tokens(system.speech_encoder(torch.from_numpy(pcm)))
    return condition


def reference_step(
    system: System, table: StepTable, index: int, *, latent: Tensor, history: Tensor, condition: Tensor, guidance: float
) -> tuple[Tensor, Tensor]:
    """One step as training samples: (x'_next, x0), both [batch, C, h, w]; `latent` is pure noise at index 0."""
    shift = prior_shift(system.prior_mode, system.prior_weight)
    offset, clip = shift.weight * system.prior, float(system.config.diffusion.latent_clip)
    denoiser: Any = system.denoiser
    shifted = shift.scale * latent + offset if index == 0 else latent
    times = torch.full((len(latent),), float(table.timesteps[index]))
    null = denoiser(shifted, times, denoiser.null_tokens.repeat(len(latent), 1, 1))
    net = null + guidance * (denoiser(shifted, times, condition) - null)
    x = (shifted - offset) / shift.scale
    x0 = (float(table.P[index]) * x + float(table.Q[index]) * net).clamp(-clip, clip)
    x_next = float(table.A[index]) * x + float(table.B[index]) * x0 + float(table.C[index]) * history
    return shift.scale * x_next + offset, x0


def reference_image(system: System, latent: Tensor) -> Tensor:
    """uint8 [batch, H, W, 3] of x'."""
    shift = prior_shift(system.prior_mode, system.prior_weight)
    z = (latent - shift.weight * system.prior) / shift.scale
    image = system.face_decoder(z * system.latent_std[:, None, None] + system.latent_mean[:, None, None])
    levels: Tensor = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


def _start(system: System) -> tuple[Array, Array]:
    noise = np.random.default_rng(3000).standard_normal((CHAIN_BATCH, *system.prior.shape)).astype(np.float32)
    return speech_like(3000, CHAIN_BATCH), noise


def _chain_onnx(system: System, rows: StepRows, sessions: Mapping[str, Any], steps: int) -> Array:
    pcm, latent = _start(system)
    (condition,) = sessions["encoder"].run(None, {"pcm": pcm})
    history = np.zeros_like(latent)
    for index in range(steps):
        feeds = {"latent": latent, "history": history, "condition": condition, "guidance": np.array([2.0], np.float32)}
        feeds["step"] = np.array([rows.first_row[steps] + index], np.int64)
        latent, history = sessions["unet"].run(None, feeds)
    (image,) = sessions["decoder"].run(None, {"latent": latent})
    return np.asarray(image)


def chain_reference(system: System, rows: StepRows, steps: int) -> Array:
    """Portraits uint8 [3, H, W, 3] of the seeded parity chain, from the trained modules."""
    pcm, noise = _start(system)
    with torch.no_grad():
        condition, latent = _condition(system, pcm), torch.from_numpy(noise)
        history = torch.zeros_like(latent)
        for index in range(steps):
            latent, history = reference_step(
                system, rows.tables[steps], index, latent=latent, history=history, condition=condition, guidance=2.0
            )
        return np.asarray(reference_image(system, latent).numpy())
