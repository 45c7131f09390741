"""ONNX Runtime and OpenVINO on this CPU, portraits in turn: stages, whole portraits, one graph, and busy neighbours.

python -m benchmarks.cpu_backends -o OUT.json [BUNDLE] [--threads 2 1] [--seconds 60]    # under three minutes

A portrait here is speech in memory, ready for the encoder, to pixels. Arms take turns portrait by portrait, since a
shared machine has fast and slow moments; beside the times stands how many cores other processes used meanwhile. They
are of all precisions that the bundle has graphs for; PSNR is to ONNX Runtime in float32, step by step.
Neighbours are processes that do nothing but burn a core each. Needs onnx, for the fused graph of all steps.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.forms import OneGraph
from runtime.backends.openvino import OpenVinoSession, precisions_here
from runtime.backends.ort import OrtSession
from runtime.bench import statistics, synthetic_speech
from runtime.bundle import Manifest, read_manifest
from runtime.doctor import package_versions
from runtime.errors import S2FError
from runtime.executor import Clock, Executor, StepwiseExecutor, Work
from runtime.machine import cpu_flags, cpu_model, load_average, usable_cores
from runtime.output import check_writable, write_file
from runtime.pipeline import read_for, settings_for, shipped_bundle
from runtime.portrait import psnr
from runtime.precision import offers_int8

NEIGHBOURS = (0, 1, 2)
ROUNDS = 3
BURN = "while True: pass"
YARDSTICK = "onnxruntime"


def arms_of(folder: Path, threads: int) -> dict[str, Executor]:
    """Every backend in every precision it takes here: step by step, and of the bundle's own graphs as one graph too.

    Raises the BundleXxx errors, BackendMissing, BackendFailed.
    """
    arms: dict[str, Executor] = {}
    manifest = read_manifest(folder)[0]
    for name, device, opener in ((YARDSTICK, "cpu", OrtSession), ("openvino", "openvino", OpenVinoSession)):
        for precision in precisions_of(device, manifest):
            settings = settings_for(manifest, device, threads, precision)
            bundle = read_for(folder, settings)
            arm = f"{name} {precision}"
            arms[arm] = StepwiseExecutor(bundle, opener, settings)
            if bundle.variant is None:
                arms[f"{arm}, one graph"] = OneGraph(bundle, opener, settings)
    return arms


def precisions_of(device: str, manifest: Manifest) -> list[str]:
    """Float32 first; eight bits where `auto` might take them."""
    floats = ["fp32"] if device == "cpu" else sorted(precisions_here(), reverse=True)
    return [*floats, *(["int8"] if offers_int8(device, manifest) else [])]


def compare(folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    """Raw milliseconds by arm and number of neighbours, of stages where an arm tells them, and PSNR to ONNX Runtime."""
    arms, manifest = arms_of(folder, threads), read_manifest(folder)[0]
    raw: dict[str, dict[str, list[float]]] = {name: {} for name in arms}
    others: dict[int, list[float]] = {count: [] for count in NEIGHBOURS}
    wanted = arms[f"{YARDSTICK} fp32"].paint(_work(manifest, 0), Clock())[0]
    alike = {name: round(psnr(arm.paint(_work(manifest, 0), Clock())[0], wanted), 1) for name, arm in arms.items()}
    before, end, seed = load_average(), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for count in NEIGHBOURS:
            with neighbours(count) as burnt, watched(others[count], burnt):
                for _ in range(ROUNDS):
                    _round(manifest, arms, raw, seed, count)
                    seed += 1
    return {
        "threads": threads,
        "load": [before, load_average()],
        "cores_used_by_others": {str(count): round(float(np.mean(values)), 2) for count, values in others.items()},
        "psnr_db": alike,
        "ms": {name: {what: statistics(values) for what, values in kinds.items()} for name, kinds in raw.items()},
        "raw_ms": raw,
    }


def _round(
    manifest: Manifest, arms: dict[str, Executor], raw: dict[str, dict[str, list[float]]], seed: int, count: int
) -> None:
    """One portrait of each arm, after one that is not counted. Another arm begins each time."""
    names = list(arms)
    for name in names[seed % len(names) :] + names[: seed % len(names)]:
        arm = arms[name]
        arm.paint(_work(manifest, seed), Clock())
        clock, begin = Clock(), time.perf_counter()
        with clock.measure("graphs"):
            arm.paint(_work(manifest, seed), clock)
        spent = {f"portrait, {count} neighbours": (time.perf_counter() - begin) * 1e3}
        timings = clock.timings()
        if count == 0 and timings.encoder is not None and timings.decoder is not None:
            spent.update(encoder=timings.encoder, step=float(np.mean(timings.steps)), decoder=timings.decoder)
        for what, value in spent.items():
            raw[name].setdefault(what, []).append(round(value, 3))


SPEECH = synthetic_speech()[None]


def _work(manifest: Manifest, seed: int) -> Work:
    options = {"guidance": manifest.guidance.default, "prior_weight": manifest.prior.weight}
    return Work(SPEECH, [seed], manifest.table(manifest.default_steps), options)


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """So many processes that burn a core each."""
    burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(count)]
    try:
        time.sleep(0.2 if burning else 0)
        yield burning
    finally:
        for one in burning:
            one.kill()
            one.wait()


@contextlib.contextmanager
def watched(found: list[float], burnt: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Adds the cores that others, neither this process nor its neighbours, used during the `with` block."""

    def used() -> float:
        ticks = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        ours = sum(_ticks(one.pid) for one in burnt)
        return (sum(ticks) - ticks[3] - ticks[4] - ours) / os.sysconf("SC_CLK_TCK") - time.process_time()

    begin, then = time.perf_counter(), used()
    yield
    found.append((used() - then) / (time.perf_counter() - begin))


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def table(result: dict[str, Any]) -> str:
    """Markdown: p50 (p10) by arm, and how much longer a portrait takes beside neighbours, p50 to p50."""
    quiet, *busy = (f"portrait, {count} neighbours" for count in NEIGHBOURS)
    columns = [quiet, "encoder", "step", "decoder"]
    heads = ["portrait", *columns[1:], *(f"{count} neighbours" for count in NEIGHBOURS[1:]), "PSNR, dB"]
    rows = [f"| ms, p50 (p10), {result['threads']} threads | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, raw in result["raw_ms"].items():
        cells = [f"{np.median(raw[c]):.1f} ({np.percentile(raw[c], 10):.1f})" if c in raw else "" for c in columns]
        cells += [f"{np.median(raw[c]):.1f}, × {np.median(raw[c]) / np.median(raw[quiet]):.1f}" for c in busy]
        rows.append(f"| {name} | {' | '.join(cells)} | {result['psnr_db'][name]} |")
    others = result["cores_used_by_others"]["0"]
    note = f"{len(raw[quiet])} portraits an arm; other work used {others} cores; load {result['load']}"
    return "\n".join([*rows, "", note])


def main() -> int:
    """Measures, prints the tables and writes the raw values."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, default=shipped_bundle())
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--seconds", type=float, default=60, help="for each number of threads")
    options = parser.parse_args()
    try:
        check_writable(options.out)
        identity = read_manifest(options.bundle)[1]
        results = [compare(options.bundle, threads, options.seconds) for threads in options.threads]
        about = {"bundle": identity, "cpu": cpu_model(), "cpu_flags": cpu_flags(), "cores": usable_cores()}
        report = {**about, "versions": package_versions(), "results": results}
        write_file(options.out, (json.dumps(report, indent=1) + "\n").encode())
    except S2FError as error:
        sys.stderr.write(f"cpu_backends: error [{error.code}]: {error}\n")
        return error.code
    sys.stdout.write("\n\n".join(table(result) for result in results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
