"""How fast this bundle is here: the measurements behind `s2f bench`.

Speech is made in code from a seed, so nothing but a bundle is needed. Cold figures come from fresh processes and are
taken first, while this one is small. Warm figures are wall times of single calls, after a warm-up; raw values are kept.
"""

from __future__ import annotations

import datetime
import io
import math
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import __version__
from .audio import load_speech
from .backends import Settings, tensorrt
from .bundle import read_bundle, read_manifest
from .doctor import package_versions
from .errors import BackendFailed, InvalidArgument
from .machine import cpu_flags, cpu_model, load_average, usable_cores
from .pipeline import Pipeline, settings_for, shipped_bundle
from .portrait import Timings

SCHEMA_VERSION = 1
RUNS, WARMUP = 200, 20
PERCENTILES = (50, 90, 99)
IDLE_SECONDS = 1.0
IMPORTS, COLD_STARTS = 5, 3

_IMPORT = "import time; t = time.perf_counter(); {0}; print((time.perf_counter() - t) * 1e3)"


def synthetic_speech(rate: int = 16000, seconds: float = 6.0, seed: int = 0) -> npt.NDArray[np.float32]:
    """A voice-like signal, float32 [rate · seconds]: a wandering pitch with falling harmonics, syllables and breath."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(rate * seconds)) / rate
    pitch = 120 + 60 * rng.random() + 12 * np.sin(2 * math.pi * 0.7 * t) + 5 * np.sin(2 * math.pi * 2.3 * t)
    phase = 2 * math.pi * np.cumsum(pitch) / rate
    voiced = np.zeros_like(t)
    for harmonic in range(1, 20):
        voiced += np.sin(harmonic * phase + 6 * rng.random()) / harmonic
    syllables = np.clip(np.sin(2 * math.pi * 2.1 * t) + 0.5, 0, 1)
    signal = voiced * syllables + 0.05 * rng.standard_normal(t.size)
    return np.asarray(0.3 * signal / np.abs(signal).max(), dtype=np.float32)


def measure(
    bundle: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    steps: int | None = None,
    runs: int = RUNS,
    warmup: int = WARMUP,
    cold: bool = True,
) -> dict[str, Any]:
    """Measure a bundle; returns the report `s2f bench --json` writes. `cold=False` leaves the fresh processes out.

    Takes about (runs + warmup) calls and ten process starts. Raises what `load` and `generate` raise, InvalidArgument
    for runs or warmup out of range, BackendFailed where a fresh process fails.
    """
    _check_counts(runs, warmup)
    folder = Path(shipped_bundle() if bundle is None else bundle)
    load_before = load_average()
    settings = settings_for(read_manifest(folder)[0], device, threads)
    once: dict[str, list[float]] = {}
    process: dict[str, float] = {}
    if cold:
        once.update(_cold(folder, settings, steps))
        process["cold_peak_rss_mb"] = _peak_rss(children=True)
    pipeline, opening = _open(folder, settings)
    once.update(opening)
    with pipeline:
        count = pipeline.manifest.default_steps if steps is None else steps
        once["first_call"], raw, used = _warm(pipeline, count, runs, warmup)
    used_settings = {"device": settings.device, "threads": settings.threads}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "s2f-bench",
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "bundle": {"name": pipeline.manifest.name, "sha256": pipeline.identity},
        "settings": {**used_settings, "steps": count, "batch": 1, "runs": runs, "warmup": warmup},
        "machine": _machine(load_before),
        "versions": {"python": platform.python_version(), **package_versions()},
        "process": {**process, **used, "peak_rss_mb": _peak_rss()},
        **_figures(once, raw),
    }


def _check_counts(runs: int, warmup: int) -> None:
    for name, value, low in (("runs", runs, 1), ("warmup", warmup, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 1_000_000:
            raise InvalidArgument(f"{name} must be a whole number in {low}..1000000, not {value!r:.40}.")


def _machine(load_before: list[float]) -> dict[str, Any]:
    """What the figures depend on and nothing that tells whose machine it is: no host name, no kernel build, no path."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "cpu_count": os.cpu_count(),
        "usable_cores": usable_cores(),
        "load_before": load_before,
        "load_after": load_average(),
    }


def _figures(once: dict[str, list[float]], raw: dict[str, list[float]]) -> dict[str, Any]:
    """Milliseconds of what happens once and of every warm call: a summary of each, and the values themselves."""
    return {
        "stages_ms": {stage: statistics(values) for stage, values in raw.items()},
        "once_ms": {name: statistics(values) for name, values in once.items()},
        "raw_ms": {name: [round(value, 4) for value in values] for name, values in {**once, **raw}.items()},
    }


def statistics(values: list[float]) -> dict[str, float]:
    """p50, p90, p99 (linear between samples), mean, min, max and count of milliseconds."""
    points = {f"p{q}": float(np.percentile(values, q)) for q in PERCENTILES}
    summary = {**points, "mean": float(np.mean(values)), "min": min(values), "max": max(values)}
    return {**{key: round(value, 4) for key, value in summary.items()}, "count": len(values)}


def to_text(report: dict[str, Any]) -> str:
    """The report as Markdown: a table in milliseconds, then the conditions it holds under."""
    settings, machine, process = report["settings"], report["machine"], report["process"]
    columns = ("p50", "p90", "p99", "mean", "min", "max")
    rows = [f"| ms | {' | '.join(columns)} | n |", "|---" * (len(columns) + 2) + "|"]
    for name, values in {**report["stages_ms"], **report["once_ms"]}.items():
        cells = " | ".join(f"{values[column]:.2f}" for column in columns)
        rows.append(f"| {name.replace('_', ' ')} | {cells} | {values['count']} |")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    figures = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in process.items())
    notes = [
        f"bundle {report['bundle']['name']} {report['bundle']['sha256'][:12]}, {settings['steps']} steps, batch 1, "
        f"device {settings['device']}, {settings['threads']} threads, {settings['warmup']} warm-up calls",
        f"{machine['cpu']}, {machine['usable_cores']} cores usable, {' '.join(machine['cpu_flags'])}",
        f"load before {machine['load_before']}, after {machine['load_after']}",
        figures,
        f"s2f-edge {report['version']}, {versions}",
    ]
    return "\n".join([*rows, "", *(f"- {note}" for note in notes)]) + "\n"


def _open(folder: Path, settings: Settings) -> tuple[Pipeline, dict[str, list[float]]]:
    """What `load` does, its two halves timed in milliseconds. The bundle's bytes are let go."""
    begin = time.perf_counter_ns()
    bundle = read_bundle(folder)
    reading = _since(begin)
    begin = time.perf_counter_ns()
    pipeline = Pipeline(bundle, settings)
    return pipeline, {"read_bundle": [reading], "open_sessions": [_since(begin)]}


def _warm(
    pipeline: Pipeline, steps: int, runs: int, warmup: int
) -> tuple[list[float], dict[str, list[float]], dict[str, float]]:
    """First call, raw milliseconds per stage of `runs` calls with as many seeds, and what the process used."""
    speech = (synthetic_speech(), 16000)
    begin = time.perf_counter_ns()
    portrait = pipeline.generate(speech, steps=steps)
    first = _since(begin)
    for seed in range(warmup):
        pipeline.generate(speech, steps=steps, seed=seed)
    raw: dict[str, list[float]] = {}
    cpu = time.process_time()
    for seed in range(runs):
        portrait = pipeline.generate(speech, steps=steps, seed=seed)
        for name, value in _stages(portrait.timings).items():
            raw.setdefault(name, []).append(value)
    per_call = (time.process_time() - cpu) * 1e3 / runs
    cpu = time.process_time()
    time.sleep(IDLE_SECONDS)
    idle = (time.process_time() - cpu) * 1e3 / IDLE_SECONDS
    each_step = [value for name, values in raw.items() if name.startswith("step_") for value in values]
    if each_step:  # a device that draws the portrait in one launch does not tell them apart
        raw["step"] = each_step
    raw["encode_png"] = _repeat(portrait.encode, min(runs, 50))
    recording = wav_bytes(synthetic_speech(48000), 48000)
    raw["audio_48k_wav"] = _repeat(lambda: load_speech(recording), min(runs, 50))
    used = {"cpu_ms_per_call": round(per_call, 3), "idle_cpu_ms_per_s": round(idle, 3), "os_threads": _os_threads()}
    return [first], raw, used


def _stages(timings: Timings) -> dict[str, float]:
    """Milliseconds by name, of the stages this device tells apart."""
    steps = {f"step_{i + 1}": value for i, value in enumerate(timings.steps)}
    told = {"audio": timings.audio, "encoder": timings.encoder, **steps, "decoder": timings.decoder}
    known = {name: value for name, value in told.items() if value is not None}
    return {**known, "graphs": timings.graphs, "end_to_end": timings.total}


def _cold(folder: Path, settings: Settings, steps: int | None) -> dict[str, list[float]]:
    """Fresh processes: the import alone, with everything a call needs, and from the shell to a saved PNG."""
    everything = f"import runtime.pipeline, soundfile, soxr, PIL.Image; {_import_of(settings.device)}"
    times = {
        "import_runtime": [float(_python("-c", _IMPORT.format("import runtime"))) for _ in range(IMPORTS)],
        "import_all": [float(_python("-c", _IMPORT.format(everything))) for _ in range(IMPORTS)],
        "process_to_png": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        speech, portrait = Path(scratch) / "speech.wav", Path(scratch) / "portrait.png"
        speech.write_bytes(wav_bytes(synthetic_speech(), 16000))
        options = ["--device", settings.device, "--threads", str(settings.threads), "--bundle", str(folder.absolute())]
        options += [] if steps is None else ["--steps", str(steps)]
        for _ in range(COLD_STARTS):
            begin = time.perf_counter_ns()
            _python("-m", "runtime", "generate", str(speech), "-o", str(portrait), *options)
            times["process_to_png"].append(_since(begin))
    return times


def _import_of(device: str) -> str:
    """The statements that import a device's package."""
    if device == "openvino":
        return "from runtime.backends import openvino; openvino.package()"  # as the package does it: no telemetry
    return f"import {tensorrt.package().__name__ if device == 'tensorrt' else 'onnxruntime'}"


def _python(*arguments: str) -> str:
    """Standard output of a fresh Python that imports this very package. Raises BackendFailed where it fails.

    Python looks for modules in the working folder first, and the caller's may hold anything, also a folder named
    `runtime`: so the process works in a new, empty one.
    """
    inherited = [str(Path(part).absolute()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    path = os.pathsep.join([*_own_place(), *inherited])
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=empty,
            env={**os.environ, "PYTHONPATH": path},
        )
    if done.returncode:
        raise BackendFailed(f"A fresh process failed: {done.stderr.strip()[-400:]}")
    return done.stdout


def _own_place() -> list[str]:
    """The folder this package lies in, unless Python looks there anyway: installed packages come after the standard
    library, and on PYTHONPATH they would come before it.
    """
    home = Path(__file__).resolve().parent.parent
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return [] if home in installed else [str(home)]


def wav_bytes(pcm: npt.NDArray[np.float32], rate: int) -> bytes:
    """A 16-bit mono WAV file of pcm [n], −1..1."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((pcm * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _repeat(action: Callable[[], object], times: int) -> list[float]:
    spent = []
    for _ in range(times):
        begin = time.perf_counter_ns()
        action()
        spent.append(_since(begin))
    return spent


def _since(begin: int) -> float:
    return (time.perf_counter_ns() - begin) / 1e6


def _peak_rss(*, children: bool = False) -> float:
    """Peak resident memory in MiB of this process, or of the largest child; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _os_threads() -> int:
    try:
        return len(list(Path("/proc/self/task").iterdir()))
    except OSError:
        return 0
