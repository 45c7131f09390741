"""Does every graph compute what training computes? ONNX Runtime against the trained modules, on seeded inputs.

The reference is training's own code: its modules (own attention, own time embedding), its prior shift, its sampling
loop. Nothing of the export wrappers is in it, so that a mistake in a wrapper cannot hide in both sides; but the
condition, which training does not know in the form the graphs hand on, is held against its wrapper. Whether it is right
shows in the steps, which start from the encoder graph's condition where training starts from the same speech.
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

from export.modules import EncoderGraph, StepRows
from runtime.backends import ort
from runtime.bundle import SAMPLE_RATE, SAMPLES
from runtime.errors import BackendFailed, ParityFailed
from training.checkpoint import System
from training.prior_shift import prior_shift
from training.sampler import Network, folded_network, guided_network, sample
from training.sampling import StepTable

Array = NDArray[Any]
Feeds = dict[str, Array]

CASES = 16
TOLERANCE = 1e-4
LEVELS = 1.0
CHAIN_LEVELS = 2.0
CHAIN_BATCH = 3
CHAIN_MOST_STEPS = 8
GUIDANCES = (0.0, 1.0, 2.0, 5.0)  # where it is free
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
    """Every graph, then the whole chain with each of these numbers of steps: the largest difference in grey levels and
    the largest share of values that differ."""

    stages: tuple[StageParity, ...]
    chain_steps: tuple[int, ...]
    chain_max_levels: float
    chain_differing: float


def check_parity(system: System, rows: StepRows, graphs: Mapping[str, bytes]) -> ParityReport:
    """Compare all graphs, then the chain. Raises ParityFailed (what, case, difference), BackendFailed (by ORT)."""
    sessions = {stage: _session(stage, data) for stage, data in graphs.items()}
    stages = []
    with torch.no_grad():
        for stage, cases in (
            ("encoder", _encoder_cases(system)),
            ("unet", _step_cases(system, rows, sessions["encoder"])),
            ("decoder", _decoder_cases(system)),
        ):
            stages.append(_check_stage(stage, sessions[stage], cases))
        counts, weights = chain_steps(rows), dict.fromkeys(system.prior_weights)
        chains = [_check_chain(system, rows, sessions, (steps, w)) for steps in counts for w in weights]
    return ParityReport(tuple(stages), counts, max(c[0] for c in chains), max(c[1] for c in chains))


def chain_steps(rows: StepRows) -> tuple[int, ...]:
    """The numbers of steps the whole chain is compared with: those up to eight, or the fewest there are."""
    return tuple(n for n in rows.tables if n <= CHAIN_MOST_STEPS) or (min(rows.tables),)


@dataclass(frozen=True)
class _Case:
    label: str
    feeds: Feeds
    expected: tuple[Tensor, ...]
    tolerance: float


def _check_stage(stage: str, session: Any, cases: Iterator[_Case]) -> StageParity:
    worst, loosest, count = 0.0, 0.0, 0
    for case in cases:
        outputs = _run(session, case.feeds)  # the latent alone where steps do not look back
        expected = case.expected[: len(outputs)]
        difference = max(_difference(a, b.numpy()) for a, b in zip(outputs, expected, strict=True))
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
    onnxruntime = ort.package("cpu")
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


def _encoder_cases(system: System) -> Iterator[_Case]:
    encoder = EncoderGraph(system).eval()
    for seed in range(CASES):
        pcm = speech_like(seed, _batch(seed))
        yield _Case(f"seed {seed}", {"pcm": pcm}, (encoder(torch.from_numpy(pcm)),), TOLERANCE)


def _step_cases(system: System, rows: StepRows, encoder: Any) -> Iterator[_Case]:
    """First and last step of every table, then steps spread over all of them; options in turn."""
    speech = speech_like(1000, 4)
    voices, (conditions,) = _embedding(system, speech), encoder.run(None, {"pcm": speech})
    places = [(n, i) for n, table in rows.tables.items() for i in range(len(table))]
    spread = [places[k] for k in np.linspace(0, len(places) - 1, CASES).astype(int)]
    weights = system.prior_weights
    first_and_last = [(n, i) for n in rows.tables for i in dict.fromkeys((0, n - 1))]
    at_both_ends = [(n, 0) for n in rows.tables] if weights[0] < weights[1] else []
    for seed, (steps, index) in enumerate([*first_and_last, *at_both_ends, *spread]):
        table, batch = rows.tables[steps], _batch(seed)
        guidance = GUIDANCES[seed % 4] if system.guidance is None else system.guidance
        weight = weights[seed // len(first_and_last) % 2]
        who = [(k + seed) % len(voices) for k in range(batch)]
        x = _noise(system, 1000 + seed, batch)
        before, after = reference_step(system, voices[who], x, table, index, guidance=guidance, weight=weight)
        feeds = {
            "latent": before[0].numpy(),
            "history": before[1].numpy(),
            "condition": conditions[who],
            "step": np.array([rows.first_row[steps] + index], np.int64),
            **_options(guidance, weight),
        }
        # x0 = P·x + Q·net: where the prediction is divided by a small alpha, so is its rounding. |Q| <= 1 for v.
        scale = max(1.0, float(abs(table.Q[index])))
        label = f"seed {seed}, step {index} of {steps}, guidance {guidance:g}, prior weight {weight:g}"
        yield _Case(label, feeds, after, TOLERANCE * scale)


def _options(guidance: float, weight: float) -> Feeds:
    return {"guidance": np.array([guidance], np.float32), "prior_weight": np.array([weight], np.float32)}


def _run(session: Any, feeds: Feeds) -> list[Array]:
    """The outputs for those of the feeds the graph has an input for."""
    names = [value.name for value in session.get_inputs()]
    outputs: list[Array] = session.run(None, {name: feeds[name] for name in names})
    return outputs


def _decoder_cases(system: System) -> Iterator[_Case]:
    for seed in range(CASES):
        x = _noise(system, 2000 + seed, _batch(seed)) * (0.5 + seed / CASES)
        yield _Case(f"seed {seed}", {"latent": _carried(system, x).numpy()}, (reference_image(system, x),), LEVELS)


def _batch(seed: int) -> int:
    return 3 if seed % 4 == 1 else 1


def _noise(system: System, seed: int, batch: int) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((batch, *system.prior.shape))
    return torch.from_numpy(values.astype(np.float32))


def _embedding(system: System, pcm: Array) -> Tensor:
    embedding: Tensor = system.speech_encoder(torch.from_numpy(pcm))
    return embedding


def reference_network(system: System, embedding: Tensor, guidance: float) -> Network:
    """The arm's network as training samples it."""
    if system.arm == "shortcut":
        return folded_network(system.denoiser, embedding)
    shift = prior_shift(system.prior_mode, system.prior_weight, system.prior)
    return guided_network(system.denoiser, embedding, shift, guidance)


def reference_source(system: System, noise: Tensor, weight: float) -> Tensor:
    """What sampling starts from: the noise, which holds the prior in the shortcut arm."""
    return noise + weight * system.prior if system.arm == "shortcut" else noise


def reference_step(
    system: System, embedding: Tensor, x: Tensor, table: StepTable, index: int, *, guidance: float, weight: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """One step of training's sampler as the graph sees it: (latent, history) before it, and after it.

    The sampler starts at x, one step earlier, so that the history is a real one; at index 0 x is the pure noise.
    """
    network = reference_network(system, embedding, guidance)
    start = reference_source(system, x, weight) if index == 0 else x

    def run(rows: StepTable) -> Tensor:
        return sample(network, start, rows, system.config.diffusion.latent_clip)

    before = x, torch.zeros_like(x)
    if index > 0:
        earlier = _rows(table, index - 1, index)
        before = _carried(system, run(earlier)), run(_until_denoised(earlier))
    both = _rows(table, max(index - 1, 0), index + 1)
    return before, (_carried(system, run(both)), run(_until_denoised(both)))


def _rows(table: StepTable, start: int, stop: int) -> StepTable:
    columns = {f.name: getattr(table, f.name)[start:stop] for f in dataclasses.fields(table) if f.name != "solver"}
    return dataclasses.replace(table, **columns)


def _until_denoised(table: StepTable) -> StepTable:
    """The same table, whose last row gives its x0 instead of x_next."""
    last = {name: getattr(table, name).copy() for name in "ABC"}
    for name, value in (("A", 0), ("B", 1), ("C", 0)):
        last[name][-1] = value
    return dataclasses.replace(table, **last)


def _carried(system: System, x: Tensor) -> Tensor:
    """x as it goes from step to step: shifted by the prior where every step works on shifted latents."""
    if system.arm == "shortcut":
        return x
    scale, offset = prior_shift(system.prior_mode, system.prior_weight, system.prior)
    return scale * x + offset


def reference_image(system: System, x: Tensor) -> Tensor:
    """uint8 [batch, H, W, 3] of the normalised latent x, which holds no prior."""
    image = system.face_decoder(x * system.latent_std[:, None, None] + system.latent_mean[:, None, None])
    levels: Tensor = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


def _start(system: System) -> tuple[Array, Tensor]:
    return speech_like(3000, CHAIN_BATCH), _noise(system, 3000, CHAIN_BATCH)


def _check_chain(
    system: System, rows: StepRows, sessions: Mapping[str, Any], chain: tuple[int, float]
) -> tuple[float, float]:
    """The largest difference in grey levels and the share of values that differ. Raises ParityFailed.

    `chain`: number of steps and prior weight.
    """
    ours, theirs = _chain_onnx(system, rows, sessions, chain), chain_reference(system, rows, *chain)
    levels = _difference(ours, theirs)
    if not levels <= CHAIN_LEVELS:
        raise ParityFailed(
            f"whole chain of {chain[0]} steps, prior weight {chain[1]:g}: portraits differ from torch by {levels:g} "
            f"grey levels, {CHAIN_LEVELS:g} are allowed, though every graph is within its own limit; the bundle was "
            "not written. Small differences grow from step to step: look for exploding latents in the run's samples."
        )
    return levels, float((ours != theirs).mean())


def _chain_onnx(system: System, rows: StepRows, sessions: Mapping[str, Any], chain: tuple[int, float]) -> Array:
    steps, weight = chain
    pcm, noise = _start(system)
    (condition,) = sessions["encoder"].run(None, {"pcm": pcm})
    latent, history = noise.numpy(), np.zeros(noise.shape, np.float32)
    for index in range(steps):
        feeds = {"latent": latent, "history": history, "condition": condition, **_options(CHAIN_GUIDANCE, weight)}
        feeds["step"] = np.array([rows.first_row[steps] + index], np.int64)
        latent, history = (*_run(sessions["unet"], feeds), history)[:2]
    (image,) = sessions["decoder"].run(None, {"latent": latent})
    return np.asarray(image)


def chain_reference(system: System, rows: StepRows, steps: int, weight: float) -> Array:
    """Portraits uint8 [3, H, W, 3] of the seeded parity chain, as training draws its previews."""
    pcm, noise = _start(system)
    with torch.no_grad():
        network = reference_network(system, _embedding(system, pcm), CHAIN_GUIDANCE)
        source = reference_source(system, noise, weight)
        x = sample(network, source, rows.tables[steps], system.config.diffusion.latent_clip)
        return np.asarray(reference_image(system, x).numpy())
