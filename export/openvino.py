"""OpenVINO beside ONNX Runtime on this CPU: behind `s2f prepare --device openvino`. Needs neither onnx nor torch."""

from __future__ import annotations

import contextlib

from export.forms import record_forms
from export.trial import draw, medians, work
from runtime.backends import Settings, select
from runtime.backends.base import Session
from runtime.backends.openvino import NAME, OpenVinoSession, keep, place_here, precision_for, precisions_here
from runtime.backends.ort import OrtSession
from runtime.bundle import Bundle
from runtime.cache import Cache
from runtime.engines import RECORDS
from runtime.errors import BackendMissing
from runtime.executor import StepwiseExecutor
from runtime.machine import usable_cores
from runtime.pipeline import read_for, settings_for
from runtime.portrait import psnr
from runtime.precision import offers_int8
from runtime.prepare import Tell
from runtime.standing import Standing, enough_db, standing_key, write_standing

SEEDS = 6
PEER = "ONNX Runtime"


def prepare(bundle: Bundle, tell: Tell) -> None:
    """Measure whether OpenVINO draws the bundle faster here, and alike; keep its compiled graphs.

    Raises BackendMissing, BackendFailed, DeviceOutOfMemory, OutputUnwritable, the BundleXxx errors.
    """
    select(NAME)
    cache, manifest = Cache.default(), bundle.manifest
    key = standing_key(manifest)
    with cache.lock(RECORDS, key, waiting=lambda: tell("another process prepares; waiting")):
        try:
            select("cpu")
        except BackendMissing as reason:
            tell(f"not measured against ONNX Runtime, so auto does not take openvino: {reason}")
            precision = precision_for(manifest)
        else:
            found = compare(bundle, tell)
            write_standing(cache, manifest, found)
            precision = found.precision
            tell(f"{found}: {'auto takes openvino' if found.wins else 'auto does not take openvino'}")
        counts, size = thread_counts(), 0
        chosen = read_for(bundle.path, Settings(NAME, 1, precision))
        for threads in counts:  # which are part of what is compiled
            settings = Settings(NAME, threads, precision)
            size += sum(keep(chosen.files[name], settings, cache, f"the {name} graph") for name in manifest.stages)
        told = " and ".join(map(str, counts))
        tell(f"ready: compiled graphs in {precision} for {told} threads, {size / 1e6:.1f} MB in the cache")
        if chosen.variant is not None:
            tell("stages one by one: a variant is not made into one graph")
        else:
            record_forms(chosen, OpenVinoSession, Settings(NAME, max(counts), precision), tell)


def thread_counts() -> list[int]:
    """What a portrait is measured with, and graphs are kept for."""
    return sorted({1, usable_cores()})


def precisions(bundle: Bundle) -> list[str]:
    """What OpenVINO is measured in: what this CPU computes in, and eight bits where "auto" may take them."""
    return [*precisions_here(), *(["int8"] if offers_int8(NAME, bundle.manifest) else [])]


def compare(bundle: Bundle, tell: Tell) -> Standing:
    """OpenVINO in each of its precisions against ONNX Runtime in the one that "auto" takes there, with one thread and
    with all usable cores.

    The precision is the fastest with all cores of those that draw the same, else the one that comes nearest.
    """
    found, peer, counts = precisions(bundle), settings_for(bundle.manifest, "cpu").precision, thread_counts()
    alike = likeness(bundle, found, counts[-1])
    times: dict[int, dict[str, float]] = {}
    for threads in counts:
        task = work(bundle, bundle.manifest.default_steps)
        with contextlib.ExitStack() as stack:
            ours = [(one, OpenVinoSession, Settings(NAME, threads, one)) for one in found]
            arms = {
                name: stack.enter_context(contextlib.closing(opened(bundle, opener, settings)))
                for name, opener, settings in [(PEER, OrtSession, Settings("cpu", threads, peer)), *ours]
            }
            times[threads] = medians(arms, task, tell)
        told = ", ".join(f"{name} {value:.1f} ms" for name, value in times[threads].items())
        tell(f"{task.steps} steps with {threads} thread{'s' if threads > 1 else ''}: {told}; {PEER} in {peer}")
    dbs = ", ".join(f"{value:.1f} dB in {name}" for name, value in alike.items())
    tell(f"PSNR to {PEER} in fp32 at least {dbs}")
    same = [precision for precision, value in alike.items() if value >= enough_db(precision)]
    fastest = times[counts[-1]]
    chosen = min(same, key=lambda name: fastest[name]) if same else max(alike, key=lambda name: alike[name])
    pairs = {threads: (values[chosen], values[PEER]) for threads, values in times.items()}
    return Standing(chosen, alike[chosen], peer, pairs, place_here())


def opened(bundle: Bundle, opener: type[Session], settings: Settings) -> StepwiseExecutor:
    """The graphs that these settings draw with."""
    return StepwiseExecutor(read_for(bundle.path, settings), opener, settings)


def likeness(bundle: Bundle, found: list[str], threads: int) -> dict[str, float]:
    """PSNR to ONNX Runtime's portraits in float32 of OpenVINO's in each precision, the lowest of SEEDS seeds at the
    default steps, in dB.
    """
    task = work(bundle, bundle.manifest.default_steps, SEEDS)
    with contextlib.closing(opened(bundle, OrtSession, Settings("cpu", threads, "fp32"))) as yardstick:
        wanted = draw(yardstick, task)
    alike = {}
    for precision in found:
        with contextlib.closing(opened(bundle, OpenVinoSession, Settings(NAME, threads, precision))) as arm:
            alike[precision] = min(psnr(*pair) for pair in zip(draw(arm, task), wanted, strict=True))
    return alike
