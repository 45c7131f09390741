"""The measurements behind `s2f bench`: a bundle on this machine, as a report of plain values.

Cold figures come from fresh processes and are taken first, while this one is small. Warm figures are wall times of
single calls after a warm-up, in blocks; every value is kept.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from .. import __version__
from ..backends import Settings
from ..bundle import read_manifest
from ..errors import InvalidArgument
from ..pipeline import Pipeline, read_for, settings_for, shipped_bundle
from ..portrait import Portrait, Timings
from .cold import fresh_processes
from .core import Block, Work, block, flat, statistics, stopwatch, values
from .disturbance import between, snapshot, together, wait_for_quiet
from .energy import joules_per_call
from .speech import synthetic_speech, wav_bytes
from .system import environment, gpus, state, versions

SCHEMA_VERSION = 3
KIND = "s2f-bench"
RUNS, WARMUP = 200, 20
BLOCK_SECONDS, BLOCK_CALLS = 0.75, 5
IDLE_SECONDS, DOUBT_SECONDS = 1.0, 2.0
FILE_RATE = 48000

Doubt: TypeAlias = Callable[[list[Block]], bool]
"""Whether the blocks so far leave a question that more of them may settle."""


def measure(
    bundle: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    steps: int | None = None,
    runs: int = RUNS,
    warmup: int = WARMUP,
    cold: bool = True,
    patience: float = 0.0,
    doubt: Doubt | None = None,
) -> dict[str, Any]:
    """Measure a bundle; returns the report `s2f bench --json` writes. `cold=False` leaves the fresh processes out.

    `patience`: seconds for which calls go on, beyond `runs` of them, until so many were undisturbed, and which it may
    wait for a quiet machine before it begins; all of them are used while `doubt` says so of the blocks. Takes about
    2 · (runs + warmup) calls and 15 process starts. Raises what `load` and `generate` raise, InvalidArgument for runs,
    warmup or patience out of range, BackendFailed where a fresh process fails.
    """
    _check("runs", runs, 1)
    _check("warmup", warmup, 0)
    if isinstance(patience, bool) or not isinstance(patience, (int, float)) or not 0 <= patience <= 86_400:
        raise InvalidArgument(f"patience must be a number of seconds in 0..86400, not {patience!r:.40}.")
    folder = Path(shipped_bundle() if bundle is None else bundle)
    state_before, machine = state(), environment()
    settings = settings_for(read_manifest(folder)[0], device, threads, precision)
    once: dict[str, list[float]] = {}
    process: dict[str, Any] = {}
    if patience:
        wait_for_quiet(time.monotonic() + patience)
    begin = snapshot()
    if cold:
        once.update(fresh_processes(folder, Settings(device, settings.threads, precision), settings.device, steps))
        process["cold_peak_rss_mib"] = _peak_rss(children=True)
    vram = _device_memory(settings)
    pipeline, opening = _open(folder, settings)
    with pipeline:
        count = pipeline.manifest.default_steps if steps is None else steps
        works = _works(pipeline, count)
        first = stopwatch(lambda: works["end_to_end"](0), 1)[0]
        opening = {**opening, "first_call": first, "first_portrait": sum(opening.values()) + first}
        once.update({name: [value] for name, value in opening.items()})
        once_conditions = between(begin, snapshot())
        blocks, conditions = _warm(works, runs, warmup, patience, doubt)
        process.update(_idle(), peak_rss_mib=_peak_rss(), os_threads=_os_threads())
        process["vram_mib"] = None if vram is None else _difference(vram, _device_memory(settings))
        energy = joules_per_call(works["end_to_end"])
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "bundle": {"name": pipeline.manifest.name, "sha256": pipeline.identity},
        "settings": {
            **{"device": settings.device, "threads": settings.threads, "steps": count, "batch": 1},
            **{"precision": pipeline.precision, "prepared": pipeline.prepared},
            **{"runs": runs, "warmup": warmup, "patience": patience},
        },
        "machine": machine,
        "state": {"before": state_before, "after": state()},
        "versions": versions(),
        "conditions": {"once": once_conditions, "calls": conditions},
        "process": process,
        "energy": energy,
        **figures(once, blocks),
    }


def figures(once: dict[str, list[float]], blocks: list[Block]) -> dict[str, Any]:
    """Milliseconds of what happens once and of every warm call: summaries, and the values themselves.

    `stages_ms` is of all calls, `quiet_ms` of those that nothing disturbed; empty where all were disturbed.
    """
    return {
        "stages_ms": {name: statistics(flat(found)) for name, found in values(blocks).items()},
        "quiet_ms": {name: statistics(flat(found)) for name, found in values(blocks, quiet=True).items()},
        "once_ms": {name: statistics(found) for name, found in once.items()},
        "raw_once_ms": {name: [round(value, 4) for value in found] for name, found in once.items()},
        "blocks": [one.to_json() for one in blocks],
    }


def collect(
    works: Mapping[str, Work], runs: int, size: int, patience: float = 0.0, doubt: Doubt | None = None
) -> list[Block]:
    """Blocks of at most `size` calls of each work until there are `runs` calls, or with patience until so many calls
    of the first work were undisturbed and there is no doubt, or the patience is over. With patience a block waits for
    a quiet machine; in doubt it waits for other times, because a guest's host has slow ones of some seconds.
    """
    first = next(iter(works))
    blocks: list[Block] = []
    end = time.monotonic() + patience
    calls = quiet = 0
    while calls < runs or (time.monotonic() < end and (quiet < runs or (doubt is not None and doubt(blocks)))):
        if quiet >= runs:
            time.sleep(DOUBT_SECONDS)
        if patience:
            wait_for_quiet(end)
            for work in works.values():
                work(calls)
        wanted = min(size, runs - calls if calls < runs else max(BLOCK_CALLS, runs - quiet))
        blocks.append(block(works, wanted, calls))
        calls += wanted
        quiet += sum(blocks[-1].quiet(first))
    return blocks


def _check(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 1_000_000:
        raise InvalidArgument(f"{name} must be a whole number in {low}..1000000, not {value!r:.40}.")


def _open(folder: Path, settings: Settings) -> tuple[Pipeline, dict[str, float]]:
    """What `load` does, its two halves timed in milliseconds. The bundle's bytes are let go."""
    made: list[Any] = []
    reading = stopwatch(lambda: made.append(read_for(folder, settings)), 1)[0]
    opening = stopwatch(lambda: made.append(Pipeline(made.pop(), settings)), 1)[0]
    return made.pop(), {"read_bundle": reading, "open_sessions": opening}


def _works(pipeline: Pipeline, steps: int) -> dict[str, Work]:
    """What is timed: from PCM in memory to pixels, from a file in memory to pixels, and from pixels to a PNG."""
    speech, recording = (synthetic_speech(), 16000), wav_bytes(synthetic_speech(FILE_RATE), FILE_RATE)
    portrait: Portrait | None = None

    def draw(seed: int) -> dict[str, float]:
        nonlocal portrait
        portrait = pipeline.generate(speech, steps=steps, seed=seed)
        return _stages(portrait.timings)

    def from_file(seed: int) -> dict[str, float]:
        return {"audio_of_file": pipeline.generate(recording, steps=steps, seed=seed).timings.audio}

    def encode(_: int) -> None:
        if portrait is not None:
            portrait.encode()

    return {"end_to_end": draw, "file_to_pixels": from_file, "encode_png": encode}


def _stages(timings: Timings) -> dict[str, float]:
    """Milliseconds by name, of the stages this device tells apart."""
    steps = {f"step_{i + 1}": value for i, value in enumerate(timings.steps)}
    told = {"audio": timings.audio, "encoder": timings.encoder, **steps, "decoder": timings.decoder}
    known = {name: value for name, value in told.items() if value is not None}
    return {**known, "graphs": timings.graphs}


def _warm(
    works: Mapping[str, Work], runs: int, warmup: int, patience: float, doubt: Doubt | None
) -> tuple[list[Block], dict[str, Any]]:
    """The timed blocks, and what the machine did during all of them."""
    size = BLOCK_CALLS
    if warmup:
        each = block(works, warmup).conditions["seconds"] / warmup
        size = max(size, int(BLOCK_SECONDS / each))
    blocks = collect(works, runs, size, patience, doubt)
    return blocks, together([one.conditions for one in blocks])


def _idle() -> dict[str, float]:
    """What an open pipeline costs while nobody asks for a portrait: CPU milliseconds a second."""
    cpu = time.process_time()
    time.sleep(IDLE_SECONDS)
    return {"idle_cpu_ms_per_s": round((time.process_time() - cpu) * 1e3 / IDLE_SECONDS, 3)}


def _device_memory(settings: Settings) -> float | None:
    """MiB in use on the first GPU, where this device is one and NVIDIA's tool tells."""
    found = gpus() if settings.device in ("cuda", "tensorrt") else []
    return found[0]["memory_used"] if found else None


def _difference(before: float, after: float | None) -> float | None:
    return None if after is None else round(after - before, 1)


def _peak_rss(*, children: bool = False) -> float | None:
    """Peak resident memory in MiB of this process, or of the largest child; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _os_threads() -> int | None:
    try:
        return len(list(Path("/proc/self/task").iterdir()))
    except OSError:
        return None
