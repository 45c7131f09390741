"""What the command does: read, calibrate, judge, write the bundle and the report."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from calibration.calibrate import Bar, Calibration, Options, Result, calibrate, command_key, split
from calibration.layers import check_also
from calibration.notebook import Notebook
from calibration.publish import gate_word, publish, sizes, stored_small
from calibration.report import Told, write_report
from calibration.speech import Clips, read_clips
from export.writer import check_target
from runtime.backends import available
from runtime.bench import synthetic_speech
from runtime.bundle import STAGES, Bundle, read_bundle
from runtime.doctor import package_versions
from runtime.errors import BundleInvalid, DeviceUnavailable, GateMissed, OutputUnwritable
from runtime.machine import cpu_flags, cpu_model, load_average, usable_cores
from runtime.pipeline import Pipeline, read_for, settings_for
from runtime.precision import SERVED

ROUNDS, CALLS = 12, 3

Latency: TypeAlias = "Mapping[tuple[str, str, int], float]"
"""Milliseconds of a portrait by device, precision and threads."""


@dataclass(frozen=True)
class Job:
    """What the user asked for; see the command's help. `check`: None takes half of `data`."""

    bundle: Path
    data: Path
    check: Path | None
    target: Path
    report: Path
    store: str
    force: bool
    keep_missed: bool
    options: Options


@dataclass(frozen=True)
class Outcome:
    """What to show, and whether a variant was left out because it missed the gate."""

    summary: str
    left_out: bool


def run(job: Job, bar: Bar[Any]) -> Outcome:
    """Calibrate a bundle. The report is written in any case, the bundle if at least one variant passes, or by force.

    Raises GateMissed if none does, and what reading, calibrating and writing raise; then no bundle was written.
    """
    check_target(job.target, force=job.force)
    bundle = read_bundle(job.bundle)
    if bundle.manifest.variants:
        bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, variants={}))
    _check_report(job.report)
    check_also(bundle, job.options.also)
    small = stored_small(bundle) if job.store == "int8" else bundle
    heard, held = _clips(job)
    key = {**command_key(bundle, heard, held, job.options), "store": job.store}
    notebook = Notebook(job.target, key)
    found = calibrate(small, bundle, heard, held, job.options, notebook=notebook, bar=bar)
    told = [one for one in found.results if job.keep_missed or gate_word(one) != "missed"]
    if told:
        publish(small, told, job.target, note=_note(found, told, held), force=job.force)
    latency = measure(job.target) if told else {}
    write_report(job.report, found, _told(job, bundle, small, found=found, voices=(heard, held), latency=latency))
    notebook.remove()
    lines = [f"{one.family}: {_verdict(one, one in told)}" for one in found.results]
    lines += [f"{layer} stays in float32: all it reads is zero" for layer in found.dead]
    if not told:
        problem = "No variant keeps the portraits, so no bundle was written. "
        raise GateMissed(
            f"{problem}{'; '.join(lines)}. See {job.report / 'report.md'}; --keep-missed writes it all the same"
        )
    shown = "\n".join([*lines, f"{job.target}: written; {job.report / 'report.md'} says how it was judged"])
    return Outcome(f"{shown}\n", len(told) < len(found.results))


def _check_report(folder: Path) -> None:
    """Refuse a place for the report before minutes are spent on it. Raises OutputUnwritable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputUnwritable(f"{folder} cannot be made: {error.strerror or error}. Give --report") from error


def measure(folder: Path) -> dict[tuple[str, str, int], float]:
    """Milliseconds of a portrait by device, precision and threads, on every CPU device here, all in turn."""
    manifest = read_bundle(folder).manifest
    speech = synthetic_speech(), manifest.audio.sample_rate
    found: dict[tuple[str, str, int], float] = {}
    devices = [one.name for one in available() if one.usable and one.name in ("cpu", "openvino")]
    for threads in sorted({1, usable_cores()}):
        with contextlib.ExitStack() as stack:
            arms: dict[tuple[str, str, int], Pipeline] = {}
            for device in sorted(devices):
                for precision in SERVED[device]:
                    with contextlib.suppress(DeviceUnavailable, BundleInvalid):  # processor or bundle does not have it
                        settings = settings_for(manifest, device, threads, precision)
                        opened = Pipeline(read_for(folder, settings), settings)
                        arms[device, precision, threads] = stack.enter_context(opened)
            spent: dict[tuple[str, str, int], list[float]] = {name: [] for name in arms}
            for _ in range(ROUNDS):
                for name, pipeline in arms.items():
                    pipeline.generate(speech)
                    for _ in range(CALLS):
                        begin = time.perf_counter()
                        pipeline.generate(speech)
                        spent[name].append((time.perf_counter() - begin) * 1e3)
            found |= {name: statistics.median(values) for name, values in spent.items()}
    return found


def _clips(job: Job) -> tuple[Clips, Clips]:
    """The voices to calibrate on, and those to judge by that are not among them."""
    clips = read_clips(job.data, force=job.force)
    if job.check is None:
        return split(clips)
    known = {window.tobytes() for window in clips.windows}
    others = read_clips(job.check, force=True)
    return clips, dataclasses.replace(others, windows=tuple(w for w in others.windows if w.tobytes() not in known))


def _verdict(one: Result, written: bool) -> str:
    quality = one.quality
    numbers = f"PSNR {quality.psnr.mean():.1f} dB, cosine {quality.cosine.mean():.4f}, " if quality.pairs else ""
    said = f"{numbers}{quality.pairs} pairs; gate {gate_word(one)}"
    missed = f" ({'; '.join(one.misses)})" if one.misses else ""
    return said + missed + ("" if written else "; not in the bundle")


def _note(found: Calibration, results: list[Result], held: Clips) -> str:
    """The section of the model card."""
    lines = [
        "Beside the float32 graphs there are variants that compute in eight bits. Each was compared with the float32 "
        f"portraits of other recordings than it was calibrated on ({len(held.windows)} of them):",
        "",
        *(f"- {one.family}: {_verdict(one, True)}" for one in results),
    ]
    if found.stored.pairs and found.stored.psnr.mean() < 99:
        mean, least = found.stored.psnr.mean(), found.stored.psnr.min()
        lines += [
            "",
            "The weights of the float32 graphs are stored in eight bits per output channel, which alone moves their "
            f"portraits a little: PSNR {mean:.1f} dB to those before on average ({least:.1f} at worst).",
        ]
    return "\n".join(lines)


def _told(
    job: Job, bundle: Bundle, small: Bundle, *, found: Calibration, voices: tuple[Clips, Clips], latency: Latency
) -> Told:
    heard, held = voices
    manifest = bundle.manifest
    versions = {name: version for name, version in package_versions().items() if version}
    shown = ("onnx", "onnxruntime", "openvino", "numpy")
    facts = {
        "bundle": f"{manifest.name} {bundle.identity}",
        "trained on": manifest.training_data,
        "calibrated on": f"{heard.statement}, sha256 of the samples {heard.digest}; {job.options.portraits} portraits",
        "judged by": f"{held.statement}, {len(found.pairs)} pairs of voice and seed, {manifest.default_steps} steps",
        "options": ", ".join(
            f"{name} {value}" for name, value in dataclasses.asdict(job.options).items() if value != ()
        ),
        "weights stored": job.store,
        "processor": f"{cpu_model()} ({', '.join(cpu_flags())}), {usable_cores()} cores, load {load_average()}",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{n} {versions[n]}" for n in shown if n in versions)]
        ),
    }
    size = {"float32": sum(len(small.files[stage]) for stage in STAGES)}
    size |= {one.family: sum(sizes(small, one).values()) for one in found.results}
    gates = {one.family: _verdict(one, True) for one in found.results}
    return Told(f"Eight bits for {manifest.name}", facts, gates, size, dict(latency))
