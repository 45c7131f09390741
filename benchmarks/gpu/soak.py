"""Piece "soak": thousands of portraits one after the other. Memory of device and host must not grow, nor the times."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu.parts import JSON, OutOfTime, Part
from benchmarks.gpu.plan import Arm, Job, work_of
from benchmarks.gpu.store import Store
from runtime.backends.cuda import Cuda
from runtime.backends.tensorrt_executor import TensorRTExecutor
from runtime.errors import NotPrepared
from runtime.executor import Clock

SOAK = "soak"
SAMPLES = 50
SETTLED = 0.1  # the part after which caches of the allocators have filled
ALLOWED = 4 << 20  # bytes: the driver hands memory out in pieces of 2 MiB, the host's allocator in less


def measure(job: Job, part: Part) -> None:
    """The portraits the goals speak of, by one engine where it is built, by the stages else."""
    store = Store(job)
    arms = [arm for arm in job.wanted.headline() if store.can_draw(arm)]
    if not arms:
        raise NotPrepared("No engines are built for the default number of steps. Run the piece engines first")
    part.attempt(SOAK, str(arms[-1]), lambda: soak(job, store, arms[-1]))


def soak(job: Job, store: Store, arm: Arm) -> JSON:
    """Draw with changing voices and seeds; stops early where the time is over, and says so by its count."""
    count, manifest, voices = job.counts.soak, job.bundle.manifest, itertools.cycle(job.voices)
    milliseconds = np.zeros(count)
    every = max(1, count // SAMPLES)
    samples: list[tuple[int, int, int]] = []
    drawn = 0
    with (
        contextlib.closing(Cuda()) as device,
        contextlib.closing(TensorRTExecutor(job.bundle, store.cache, record=store.record([arm]))) as executor,
    ):
        for seed in range(count):
            if seed % every == 0:
                samples.append((seed, device.free_memory(), resident()))
                if job.deadline.left <= 0:
                    break
            work = work_of(manifest, [next(voices)], [seed], arm.steps)
            begin = time.perf_counter_ns()
            executor.paint(work, Clock())
            milliseconds[seed] = (time.perf_counter_ns() - begin) / 1e6
            drawn = seed + 1
        samples.append((drawn, device.free_memory(), resident()))
    if drawn < 2 * every:
        raise OutOfTime(f"only {drawn} of {count} portraits were drawn")
    return {"asked": count, "portraits": drawn, **memory(samples), **drift(milliseconds[:drawn])}


def memory(samples: list[tuple[int, int, int]]) -> JSON:
    """`samples`: (portraits drawn, bytes free on the device, bytes of this process). Growth after the settling time."""
    count = samples[-1][0]
    settled = [sample for sample in samples if sample[0] >= SETTLED * count]
    drawn, free, host = (np.array(column, float) for column in zip(*settled, strict=True))
    found: JSON = {"samples": {"portraits": drawn, "device_free": free, "host_resident": host}}
    for name, used in (("device", -free), ("host", host)):
        slope = float(np.polyfit(drawn, used, 1)[0]) if len(drawn) > 1 else 0.0
        found[name] = {"grown_bytes": int(used[-1] - used[0]), "bytes_per_1000": round(1000 * slope, 1)}
    found["grows"] = any(found[name]["grown_bytes"] > ALLOWED for name in ("device", "host"))
    return found


def drift(milliseconds: np.ndarray) -> JSON:
    """p50 and p99 of every tenth of the portraits, in order."""
    tenths = [part for part in np.array_split(milliseconds, 10) if part.size]
    return {
        "p50_ms": [round(float(np.percentile(part, 50)), 4) for part in tenths],
        "p99_ms": [round(float(np.percentile(part, 99)), 4) for part in tenths],
        "max_ms": round(float(milliseconds.max()), 4),
    }


def resident() -> int:
    """Bytes of memory this process has now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
