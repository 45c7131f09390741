"""How near every stage is to what this machine can do: `python -m benchmarks.floor [-o OUT.json]`.

    floor = max(operations of matrix work / peak of their precision, bytes / bandwidth of copies in cache)

Peak and bandwidth are measured in the same run (`benchmarks.floor.peaks`). The bandwidth is that of a cache, because
weights and activations of these graphs fit into one; where they do not, a floor is too low, never too high.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.floor.peaks import peaks
from benchmarks.floor.stages import by_kind, costs, engines
from benchmarks.gpu.parts import JSON
from benchmarks.gpu.worker import versions
from benchmarks.peers.task import Task
from runtime import __version__
from runtime.bench import between, environment, snapshot, state
from runtime.bundle import STAGES, read_manifest
from runtime.errors import S2FError
from runtime.machine import usable_cores
from runtime.output import check_writable, write_file
from runtime.pipeline import shipped_bundle

SCHEMA_VERSION, KIND = 1, "s2f-floor"
LIMIT = 1.6
"""Best time over floor above which the report says where the time goes."""
TOLD = 6
WIDTH = {"f32": 1.0, "bf16": 0.5}
"""Bytes of a number, as a share of float32's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is the error's code."""
    options = _parser().parse_args(arguments)
    try:
        if options.out is not None:
            check_writable(options.out)
        report = measure(options)
        text = markdown(report)
        if options.out is not None:
            write_file(options.out, (json.dumps(report, indent=1) + "\n").encode())
            write_file(options.out.with_suffix(".md"), text.encode())
    except S2FError as error:
        sys.stderr.write(f"floor: error [{error.code}]: {error}\n")
        return error.code
    sys.stdout.write(text)
    return 0


def measure(options: argparse.Namespace) -> JSON:
    """Costs, peaks, times and profiles for each number of threads. Raises the BundleXxx errors."""
    folder = options.bundle or shipped_bundle()
    manifest, identity = read_manifest(folder)
    steps = manifest.default_steps
    counted = costs(Task(folder, "", steps, 1).bundle)
    runs = []
    for threads in options.threads:
        before, task = snapshot(), Task(folder, "", steps, threads)
        found = peaks(threads)
        measured = {
            name: {"precision": engine.precision, "ms": engine.measure(task), "operators_ms": engine.profile(task)}
            for name, engine in engines().items()
        }
        conditions = between(before, snapshot())
        runs.append({"threads": threads, "peaks": found, "engines": measured, "conditions": conditions})
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "bundle": {"name": manifest.name, "sha256": identity},
        "machine": {**environment(), **state()},
        "versions": versions(),
        "costs": counted,
        "runs": runs,
    }


def floor_ms(cost: JSON, found: JSON, precision: str) -> JSON | None:
    """Milliseconds of a stage: what arithmetic and traffic need, and the floor; None without a peak of this precision.

    `cost`: of `costs`; `found`: of `peaks`.
    """
    peak = found["gflops"].get(precision)
    if not peak:
        return None
    moved = (cost["weight_bytes"] + cost["activation_bytes"]) * WIDTH[precision]
    compute, traffic = cost["flops"] / peak / 1e6, moved / found["copies_gb_s"]["cache"] / 1e6
    kinds = {kind: operations / peak / 1e6 for kind, operations in cost["by_kind"].items()}
    return {"compute": compute, "traffic": traffic, "floor": max(compute, traffic), "by_kind": kinds}


def markdown(report: JSON) -> str:
    """What is counted, what the machine can, measured over floor, and where the rest goes."""
    parts = [_counted(report["costs"])]
    for run in report["runs"]:
        parts += [_peaks(run), _over(report["costs"], run), "\n".join(_explained(report["costs"], run))]
    machine = report["machine"]
    parts.append(f"{machine['cpu']}, {' '.join(machine['cpu_flags'])}; load {machine['load']}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _counted(counted: JSON) -> str:
    head = "| counted, float32 | MFLOP, matrix work | of it conv. | other MFLOP | weights MB | activations MB | nodes |"
    rows = [head, "|---" * 7 + "|"]
    for stage, cost in counted.items():
        share = cost["by_kind"].get("convolution", 0) / max(cost["flops"], 1)
        numbers = (cost["weight_bytes"] / 1e6, cost["activation_bytes"] / 1e6)
        cells = [stage, f"{cost['flops'] / 1e6:.0f}", f"{share:.0%}", f"{cost['elementwise'] / 1e6:.1f}"]
        rows.append(f"| {' | '.join([*cells, *(f'{n:.1f}' for n in numbers), str(cost['nodes'])])} |")
    return "\n".join(rows)


def _peaks(run: JSON) -> str:
    found = run["peaks"]
    best = [
        f"{rate:.0f} GFLOP/s {precision} ({found['best'][precision]})" for precision, rate in found["gflops"].items()
    ]
    copies = found["copies_gb_s"]
    told = f"copies {copies['cache']:.0f} GB/s in cache, {copies['memory']:.0f} GB/s in memory"
    others = run["conditions"]["others"]
    busy = "" if others is None else f"; others took {others:.0%} of the CPU time meanwhile"
    return f"{_threads(run)}: matrix products {', '.join(best)}; {told}{busy}"


def _over(counted: JSON, run: JSON) -> str:
    head = (
        f"| {_threads(run)} | stage | ms p50 | best | floor | p50 / floor | best / floor | convolutions / their floor |"
    )
    rows = [head, "|---" * 8 + "|"]
    for name, engine in run["engines"].items():
        for stage in STAGES:
            floor = floor_ms(counted[stage], run["peaks"], engine["precision"])
            if floor is None:
                continue
            middle, best, least = engine["ms"][stage]["p50"], engine["ms"][stage]["best"], floor["floor"]
            times = convolution_times(engine, stage, floor)
            numbers = (middle, best, least, middle / least, best / least)
            cells = [name, stage, *(f"{number:.2f}" for number in numbers), "" if times is None else f"{times:.2f}"]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _threads(run: JSON) -> str:
    return "one thread" if run["threads"] == 1 else f"{run['threads']} threads"


def convolution_times(engine: JSON, stage: str, floor: JSON) -> float | None:
    """How many times its floor the profile's convolutions of a stage take; None where there are none."""
    spent, least = by_kind(engine["operators_ms"][stage]).get("convolution"), floor["by_kind"].get("convolution")
    return spent / least if spent and least else None


def _explained(counted: JSON, run: JSON) -> Iterator[str]:
    for name, engine in run["engines"].items():
        for stage in STAGES:
            floor = floor_ms(counted[stage], run["peaks"], engine["precision"])
            if floor is None or engine["ms"][stage]["best"] / floor["floor"] <= LIMIT:
                continue
            spent = engine["operators_ms"][stage]
            whole = sum(spent.values()) or 1.0
            top = list(spent.items())[:TOLD]
            told = ", ".join(f"{operator} {ms:.2f} ({ms / whole:.0%})" for operator, ms in top)
            yield f"- {name}, {stage}, {_threads(run)}: ms by operator in the engine's profile: {told}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--bundle", type=Path, help="default: the one that is shipped")
    parser.add_argument("--threads", type=int, nargs="+", default=[usable_cores(), 1], metavar="N")
    return parser


if __name__ == "__main__":
    sys.exit(main())
