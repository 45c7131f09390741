"""Does the gate of `s2f bench` tell a slower build from noise? Reruns of one build, and the same slowed down by sleep.

python -m benchmarks.gate -o OUT.json [--reruns 20] [--slowed 6] [--busy 3] [--sleep 0.3]
python -m benchmarks.gate --once [OPTIONS of s2f bench]    # no proof, but the gate itself: `make gate`

Each run is a process of its own, held against this machine's baseline in benchmarks/baselines; runs of all kinds are
interleaved. A run has the device, precision, threads and steps of the baseline, and a cache of its own, so nothing
that was prepared here before changes it; where the baseline was prepared, the cache is too, once. The sleep is put in
here, around the pipeline: after every call, that share of the time it took. Busy runs are of the same build, while a
loop burns every CPU, and without patience. A slowed build that met too busy a machine is run again, because a gate
proves nothing by builds it has not judged; the JSON says how many tries each run took.
"""

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from runtime import bench, cli
from runtime.bundle import read_bundle
from runtime.errors import CODES, BackendFailed, S2FError
from runtime.machine import affinity
from runtime.output import check_writable, write_file
from runtime.pipeline import Pipeline, shipped_bundle
from runtime.prepare import prepare

BASELINES = Path(__file__).with_name("baselines")
LIMIT, RUNS, PATIENCE = 1.10, 40, 60.0
WAIT = 600.0
"""Seconds to wait for a quiet machine before a run, beside its own patience: it is about the runs, not the waiting."""
AGAIN = {"same_build": 0, "slowed": 5, "busy": 0}
"""By kind, how many times a run that was not judged is made again."""
ENDS = (0, CODES["Slower"], CODES["NotJudged"])
"""Exit statuses of a run that has measured."""


def slowed(share: float) -> type[Pipeline]:
    """A pipeline that sleeps after every call."""

    class Slowed(Pipeline):
        def generate(self, *arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            portraits = super().generate(*arguments, **options)
            time.sleep(share * (time.perf_counter() - begin))
            return portraits

    return Slowed


def held(base: dict[str, Any], *options: str) -> int:
    """One `s2f bench` as the baseline was measured, held against it; its exit status. What `options` say comes last."""
    named = [f"--{name}={base['settings'][name]}" for name in ("device", "precision", "threads", "steps")]
    gate = [f"--baseline={BASELINES}", f"--max-ratio={LIMIT:g}", f"--patience={PATIENCE:g}"]
    return cli.main(["bench", "--warm-only", *named, *gate, *options])


@contextlib.contextmanager
def own_cache(base: dict[str, Any]) -> Iterator[None]:
    """A cache for this process and its children: empty, or prepared where the baseline was.

    Raises what `s2f prepare` raises.
    """
    with (
        tempfile.TemporaryDirectory(prefix="s2f-gate-") as folder,
        mock.patch.dict(os.environ, {"S2F_CACHE": folder}),
    ):
        if base["settings"]["prepared"]:
            device = base["settings"]["device"]
            prepare(read_bundle(shipped_bundle()), device, lambda line: sys.stderr.write(f"{line}\n"))
        yield


def run(base: dict[str, Any], out: Path, sleep: float, patience: float) -> int:
    """One run of the proof; its exit status."""
    pipeline = slowed(sleep) if sleep else Pipeline
    with mock.patch("runtime.bench.report.Pipeline", pipeline):
        return held(base, "--warmup=10", f"--runs={RUNS}", f"--patience={patience:g}", f"--json={out}")


@contextlib.contextmanager
def loops(count: int) -> Iterator[None]:
    """So many processes that do nothing but burn a CPU."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def until_judged(once: Callable[[], int], again: int) -> tuple[int, int]:
    """The exit status of the last run and the number of runs: anew while the machine was too busy, `again` times at
    most.
    """
    status, tries = once(), 1
    while status == CODES["NotJudged"] and tries <= again:
        status, tries = once(), tries + 1
    return status, tries


def child(kind: str, out: Path, sleep: float) -> int:
    """A run in a process of its own, which writes `out` anew; its exit status. Raises BackendFailed if it did not."""
    share, patience, burning = {
        "same_build": (0.0, PATIENCE, 0),
        "slowed": (sleep, PATIENCE, 0),
        "busy": (0.0, 0.0, len(affinity())),
    }[kind]
    out.unlink(missing_ok=True)
    if patience:
        bench.wait_for_quiet(time.monotonic() + WAIT)
    command = [sys.executable, "-m", "benchmarks.gate", "-o", str(out), "--child", str(share), str(patience)]
    with loops(burning):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in ENDS or not out.exists():
        raise BackendFailed(f"A run of {kind} ended with {done.returncode} and measured nothing: {done.stderr}")
    return done.returncode


def judged(kind: str, out: Path, base: dict[str, Any], once: Callable[[], int]) -> dict[str, Any]:
    """What a run ended with, in the end, and how it compares. `once` makes a run, which writes `out`."""
    status, tries = until_judged(once, AGAIN[kind])
    report = bench.read_report(out)
    found = bench.compare(base, report)
    calls = report["conditions"]["calls"]
    return {
        "kind": kind,
        "status": status,
        "tries": tries,
        "judged": found.judged,
        "ratio": vars(found.quick),
        "ratio_of_medians": vars(found.ratios["end_to_end"]),
        "p50_undisturbed_ms": report["quiet_ms"].get("end_to_end", {}).get("p50"),
        "undisturbed": report["quiet_ms"].get("end_to_end", {}).get("count", 0),
        "calls": report["stages_ms"]["end_to_end"]["count"],
        "others": calls["others"],
        "dirty": bool(calls["dirty"]),
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts: how many there were, in how many tries, were dirty, were judged, were called slower; and the range of the
    judged ratios.
    """
    ratios = [one["ratio"]["value"] for one in runs if one["judged"]]
    return {
        "runs": len(runs),
        "tries": sum(one["tries"] for one in runs),
        "returned": sum(one["status"] in ENDS for one in runs),
        "dirty": sum(one["dirty"] for one in runs),
        "judged": len(ratios),
        "called_slower": sum(one["status"] == CODES["Slower"] for one in runs),
        "least": min(ratios, default=None),
        "most": max(ratios, default=None),
    }


def proof(base: dict[str, Any], options: argparse.Namespace) -> int:
    """Measures, prints the counts and writes all runs. Raises OutputUnwritable, BackendFailed."""
    kinds = {"same_build": options.reruns, "slowed": options.slowed, "busy": options.busy}
    check_writable(options.out)
    about = {"kind": "s2f-gate", "limit": LIMIT, "sleep": options.sleep, "calls": RUNS, "patience_s": PATIENCE}
    about |= {"machine": bench.environment(), "bundle": base["bundle"], "settings": base["settings"]}
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        for kind in [kind for number in range(max(kinds.values())) for kind in kinds if number < kinds[kind]]:
            runs.append(judged(kind, out, base, functools.partial(child, kind, out, options.sleep)))
            sys.stderr.write(f"{runs[-1]}\n")
            counts = {name: summary([one for one in runs if one["kind"] == name]) for name in kinds}
            write_file(options.out, bench.to_json({**about, **counts, "runs": runs}).encode())
    for name, found in counts.items():
        sys.stdout.write(f"{name}: {found}\n")
    return 0


def main() -> int:
    """The command; the exit status is the gate's, or an error's code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--reruns", type=int, default=20)
    parser.add_argument("--slowed", type=int, default=6)
    parser.add_argument("--busy", type=int, default=3)
    parser.add_argument("--sleep", type=float, default=0.3)
    parser.add_argument("--child", nargs=2, type=float, help=argparse.SUPPRESS)
    parser.add_argument("--once", nargs=argparse.REMAINDER, metavar="OPTION", help="the gate; options of s2f bench")
    options = parser.parse_args()
    if options.once is None and options.out is None:
        parser.error("say where the report goes: -o OUT.json")
    try:
        base = bench.read_report(bench.baseline(BASELINES))
        if options.child:
            return run(base, options.out, *options.child)
        with own_cache(base):
            return proof(base, options) if options.once is None else held(base, *options.once)
    except S2FError as error:
        sys.stderr.write(f"gate: error [{error.code}]: {error}\n")
        return error.code


if __name__ == "__main__":
    sys.exit(main())
