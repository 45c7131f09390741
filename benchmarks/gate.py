"""Does the gate of `s2f bench` tell a slower build from noise? Reruns of one build, and the same slowed down by sleep.

python -m benchmarks.gate -o OUT.json [--reruns 20] [--slowed 6] [--busy 3] [--sleep 0.3]

Each run is a process of its own, held against this machine's baseline in benchmarks/baselines; runs of all kinds are
interleaved. The sleep is put in here, around the pipeline: after every call, that share of the time it took. Busy runs
are of the same build, while a loop burns every CPU, and without patience. A slowed build that met too busy a machine
is run again, because a gate proves nothing by builds it has not judged; the JSON says how many tries each run took.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from runtime import bench, cli
from runtime.errors import CODES, S2FError
from runtime.machine import affinity
from runtime.output import check_writable, write_file
from runtime.pipeline import Pipeline

BASELINES = Path(__file__).with_name("baselines")
LIMIT, RUNS, PATIENCE = 1.10, 40, 60.0
WAIT = 600.0
"""Seconds to wait for a quiet machine before a run, beside its own patience: it is about the runs, not the waiting."""
AGAIN = {"same_build": 0, "slowed": 5, "busy": 0}
"""By kind, how many times a run that was not judged is made again."""


def slowed(share: float) -> type[Pipeline]:
    """A pipeline that sleeps after every call."""

    class Slowed(Pipeline):
        def generate(self, *arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            portraits = super().generate(*arguments, **options)
            time.sleep(share * (time.perf_counter() - begin))
            return portraits

    return Slowed


def run(out: Path, sleep: float, patience: float) -> int:
    """One `s2f bench` held against the baseline; its exit status."""
    options = ["--warm-only", "--warmup=10", f"--runs={RUNS}", f"--patience={patience:g}", f"--json={out}"]
    gate = [f"--baseline={BASELINES}", f"--max-ratio={LIMIT:g}"]
    pipeline = slowed(sleep) if sleep else Pipeline
    with mock.patch("runtime.bench.report.Pipeline", pipeline):
        return cli.main(["bench", *options, *gate])


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


def judged(kind: str, out: Path, sleep: float, base: dict[str, Any]) -> dict[str, Any]:
    """What a run in a process of its own ended with, in the end, and how it compares."""
    share, patience, burning = {
        "same_build": (0.0, PATIENCE, 0),
        "slowed": (sleep, PATIENCE, 0),
        "busy": (0.0, 0.0, len(affinity())),
    }[kind]
    command = [sys.executable, "-m", "benchmarks.gate", "-o", str(out)]

    def once() -> int:
        if patience:
            bench.wait_for_quiet(time.monotonic() + WAIT)
        with loops(burning):
            child = [*command, "--child", str(share), str(patience)]
            return subprocess.run(child, capture_output=True, check=False).returncode

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
        "returned": sum(one["status"] in (0, CODES["Slower"], CODES["NotJudged"]) for one in runs),
        "dirty": sum(one["dirty"] for one in runs),
        "judged": len(ratios),
        "called_slower": sum(one["status"] == CODES["Slower"] for one in runs),
        "least": min(ratios, default=None),
        "most": max(ratios, default=None),
    }


def main() -> int:
    """Measures, prints the counts and writes all runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--reruns", type=int, default=20)
    parser.add_argument("--slowed", type=int, default=6)
    parser.add_argument("--busy", type=int, default=3)
    parser.add_argument("--sleep", type=float, default=0.3)
    parser.add_argument("--child", nargs=2, type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return run(options.out, *options.child)
    kinds = {"same_build": options.reruns, "slowed": options.slowed, "busy": options.busy}
    try:
        check_writable(options.out)
        base = bench.read_report(bench.baseline(BASELINES))
        about = {"kind": "s2f-gate", "limit": LIMIT, "sleep": options.sleep, "calls": RUNS, "patience_s": PATIENCE}
        about["machine"] = bench.environment()
        runs: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            for kind in [kind for number in range(max(kinds.values())) for kind in kinds if number < kinds[kind]]:
                runs.append(judged(kind, Path(folder) / "run.json", options.sleep, base))
                sys.stderr.write(f"{runs[-1]}\n")
                counts = {name: summary([one for one in runs if one["kind"] == name]) for name in kinds}
                write_file(options.out, bench.to_json({**about, **counts, "runs": runs}).encode())
    except S2FError as error:
        sys.stderr.write(f"gate: error [{error.code}]: {error}\n")
        return error.code
    for name, found in counts.items():
        sys.stdout.write(f"{name}: {found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
