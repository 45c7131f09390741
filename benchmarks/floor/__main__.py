"""How near every stage is to what this machine can do: `python -m benchmarks.floor [-o OUT.json]`.

Prints the tables, and writes OUT.json and OUT.md. `--from OUT.json` makes the text again without measuring.

    floor = max(operations of matrix work / peak of their precision, bytes / bandwidth of copies in cache)

Peak and bandwidth are measured in the same run (`benchmarks.floor.peaks`). The bandwidth is that of a cache, because
weights and activations of these graphs fit into one. The floor is an estimate and may be off either way: too low where
they do not fit, or where no convolution reaches the peak of square products; too high where activations lie in a nearer
cache than the copies, or where a convolution needs fewer operations than are counted (Winograd).
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.floor import report as reports
from benchmarks.floor.peaks import peaks
from benchmarks.floor.stages import costs, engines
from benchmarks.gpu.parts import JSON
from benchmarks.gpu.worker import versions
from benchmarks.peers.task import Task
from runtime import __version__
from runtime.bench import between, environment, snapshot, state
from runtime.bundle import read_manifest
from runtime.errors import S2FError
from runtime.machine import usable_cores
from runtime.output import check_writable, write_file
from runtime.pipeline import shipped_bundle


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is the error's code."""
    options = _parser().parse_args(arguments)
    try:
        out = options.out or options.again
        if options.again is not None:
            report = reports.read(options.again)
        else:
            if out is not None:
                check_writable(out)
            report = measure(options)
            if out is not None:
                write_file(out, (json.dumps(report, indent=1) + "\n").encode())
        text = reports.markdown(report)
        if out is not None:
            write_file(out.with_suffix(".md"), text.encode())
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
            for name, engine in engines(manifest).items()
        }
        conditions = between(before, snapshot())
        runs.append({"threads": threads, "peaks": found, "engines": measured, "conditions": conditions})
    return {
        "schema_version": reports.SCHEMA_VERSION,
        "kind": reports.KIND,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "bundle": {"name": manifest.name, "sha256": identity},
        "machine": {**environment(), **state()},
        "versions": versions(),
        "costs": counted,
        "runs": runs,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=(__doc__ or "").splitlines()[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-o", "--out", type=Path)
    where.add_argument("--from", dest="again", type=Path, metavar="OUT.json", help="only the text")
    parser.add_argument("--bundle", type=Path, help="default: the one that is shipped")
    parser.add_argument("--threads", type=int, nargs="+", default=[usable_cores(), 1], metavar="N")
    return parser


if __name__ == "__main__":
    sys.exit(main())
