"""Ours beside what others would do on this machine, in one run: `python -m benchmarks.peers -o OUT.json`.

Writes OUT.json with every value, OUT.md and OUT.png beside it, and prints the table. Contests of an earlier run that
lie in OUT.json stay there where they are of the same bundle and steps and of other numbers of threads, so that a
disturbed one can be measured again by itself (`--threads`). `--from OUT.json` makes table and plot again without
measuring.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.parts import JSON, Deadline
from benchmarks.gpu.worker import versions
from benchmarks.peers import report as reports
from benchmarks.peers.arena import LOG, Counts, contest, open_child
from benchmarks.peers.arms import Arm, arms, missing
from benchmarks.peers.task import Task
from runtime import __version__
from runtime.bench import environment, state
from runtime.bundle import read_manifest
from runtime.errors import InvalidArgument, S2FError
from runtime.machine import usable_cores
from runtime.output import check_writable, write_file
from runtime.pipeline import shipped_bundle

MINUTES = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is the error's code."""
    options = _parser().parse_args(arguments)
    try:
        if options.again is not None:
            report, out = reports.read(options.again), options.again
        else:
            out = options.out
            check_writable(out)
            report = measure(options)
            write_file(out, (json.dumps(report, indent=1) + "\n").encode())
        text = reports.markdown(report)
        write_file(out.with_suffix(".md"), text.encode())
        write_file(out.with_suffix(".png"), reports.plot(report))
    except S2FError as error:
        sys.stderr.write(f"peers: error [{error.code}]: {error}\n")
        return error.code
    sys.stdout.write(text)
    return 0


def measure(options: argparse.Namespace) -> JSON:
    """The report: what was measured where, every value of it. Raises the BundleXxx errors, InvalidArgument."""
    folder = options.bundle or shipped_bundle()
    manifest, identity = read_manifest(folder)
    steps = manifest.default_steps if options.steps is None else options.steps
    manifest.table(steps)
    chosen = _chosen(options.arms)
    lacking = {name: why for name, arm in chosen.items() if (why := missing(name, arm))}
    counts, begin = (
        Counts(rounds=options.rounds, most_rounds=2 * options.rounds, patience=options.patience),
        {**environment(), **state()},
    )
    deadline, contests = Deadline(60 * options.minutes), _kept(options.out, identity, steps, options.threads)
    for number, threads in enumerate(options.threads):
        task = Task(folder, options.network, steps, None if threads == usable_cores() else threads)
        share = Deadline(deadline.left / (len(options.threads) - number))
        here, opener = [name for name in chosen if name not in lacking], open_child(options.out.with_name(LOG))
        found = contest(here, task, opener, counts=counts, deadline=share, tell=_tell)
        contests.append({"threads": threads, "time": _now(), "missing": lacking, "arms": found})
    return {
        "schema_version": reports.SCHEMA_VERSION,
        "kind": reports.KIND,
        "time": _now(),
        "version": __version__,
        "bundle": {"name": manifest.name, "sha256": identity},
        "settings": {"steps": steps, "seeds": counts.seeds, "rounds": counts.rounds, "network": options.network},
        "machine": begin,
        "versions": {**versions(), "openvino": _version("openvino")},
        "arms": {n: {"what": a.what, "steps": a.steps or steps, "random": a.random} for n, a in arms().items()},
        "contests": sorted(contests, key=lambda contest: -int(contest["threads"])),
    }


def _kept(out: Path, identity: str, steps: int, threads: Sequence[int]) -> list[JSON]:
    """The contests of an earlier run that are not measured again."""
    if not out.exists():
        return []
    earlier = reports.read(out)
    if (earlier["bundle"]["sha256"], earlier["settings"]["steps"]) != (identity, steps):
        return []
    return [contest for contest in earlier["contests"] if contest["threads"] not in threads]


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _chosen(names: Sequence[str]) -> dict[str, Arm]:
    known = arms()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidArgument(f"There is no arm {unknown[0]!r}. Choose of {', '.join(known)}.")
    return {name: arm for name, arm in known.items() if not names or name in names}


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _tell(what: str) -> None:
    sys.stderr.write(f"peers: {what}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--out", type=Path)
    where.add_argument("--from", dest="again", type=Path, metavar="OUT.json", help="only table and plot")
    parser.add_argument("--bundle", type=Path, help="default: the one that is shipped")
    parser.add_argument("--network", default="demo", help="the bundle's configuration, for the arms in PyTorch")
    parser.add_argument("--steps", type=int, help="default: the bundle's")
    parser.add_argument("--threads", type=int, nargs="+", default=[usable_cores(), 1], metavar="N")
    parser.add_argument("--rounds", type=int, default=5, help="clean rounds wanted; twice as many at most")
    parser.add_argument("--patience", type=float, default=2.0, help="seconds a turn may wait for a quiet machine")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no round begins that would end later")
    parser.add_argument("--arms", nargs="+", default=[], metavar="NAME", help="default: all")
    return parser


if __name__ == "__main__":
    sys.exit(main())
