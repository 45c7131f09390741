"""Ours beside what others would do on this machine, in one run: `python -m benchmarks.peers -o OUT.json`.

Writes OUT.json with every value, OUT.md and OUT.png beside it, and prints the table. Contests of an earlier run that
lie in OUT.json stay there where they are of other numbers of threads, so that a disturbed one can be measured again by
itself (`--threads`); each says when and where it was measured, and one of another bundle, machine or version is refused
beside new ones. `--from OUT.json` makes table and plot again without measuring.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
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

MINUTES = 8.0
ABOUT: dict[str, tuple[str, ...]] = {"bundle": (), "settings": ()}
PLACE: dict[str, tuple[str, ...]] = {
    "machine": ("id", "system", "affinity", "cgroup_quota_cores", "governor"),
    "versions": (),
}
"""What contests of one file have in common, of the file and of where they were measured; load is each one's own."""


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
    lacking = {name: why for name, arm in chosen.items() if (why := missing(arm, manifest))}
    report = {
        "schema_version": reports.SCHEMA_VERSION,
        "kind": reports.KIND,
        "bundle": {"name": manifest.name, "sha256": identity},
        "settings": {"steps": steps, "network": options.network},
        "arms": {n: {"what": a.what, "steps": a.steps or steps, "random": a.random} for n, a in arms().items()},
    }
    contests, deadline = kept(options.out, report, options.threads, surroundings()), Deadline(60 * options.minutes)
    counts = Counts(rounds=options.rounds, most_rounds=2 * options.rounds, patience=options.patience)
    for number, threads in enumerate(options.threads):
        task = Task(folder, options.network, steps, None if threads == usable_cores() else threads)
        share = Deadline(deadline.left / (len(options.threads) - number))
        here, opener = [name for name in chosen if name not in lacking], open_child(options.out.with_name(LOG))
        about = {"threads": threads, "began": _now(), **surroundings(), "counts": dataclasses.asdict(counts)}
        found = contest(here, task, opener, counts=counts, deadline=share, tell=_tell)
        for name, result in found.items():
            result["precision"] = result.get("prepared", {}).get("precision", chosen[name].precision)
        contests.append({**about, "ended": _now(), "state_after": state(), "missing": lacking, "arms": found})
    return {**report, "contests": sorted(contests, key=lambda contest: -int(contest["threads"]))}


def surroundings() -> JSON:
    """What a contest depends on beside bundle and settings: release, machine with its load now, versions."""
    return {"machine": {**environment(), **state()}, "versions": {"s2f-edge": __version__, **versions()}}


def kept(out: Path, report: JSON, threads: Sequence[int], now: JSON) -> list[JSON]:
    """The contests of an earlier run in `out` that are not measured again; `report`: the new one without its contests.

    Raises InvalidArgument where they do not belong beside new ones: of another bundle, of other settings, or measured
    elsewhere than `now` (of `surroundings`).
    """
    if not out.exists():
        return []
    earlier = reports.read(out)
    staying = [one for one in earlier["contests"] if one["threads"] not in threads]
    for one in staying:
        other = [*_differences(earlier, report, ABOUT), *_differences(one, now, PLACE)]
        other += [f"the arm {name} is gone" for name in one["arms"] if name not in report["arms"]]
        if other:
            raise InvalidArgument(
                f"{out} holds a contest of {one['ended']} with {reports.threads_in_words(one)} that does not belong "
                f"beside what is measured now: {'; '.join(other)}. Measure all again, without --threads, or name "
                "another file."
            )
    return staying


def _differences(then: JSON, now: JSON, what: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What has changed; `what`: sections, and which of their entries are looked at, all where none is named."""
    for section, chosen in what.items():
        old, new = then[section], now[section]
        for name in chosen or {**old, **new}:
            if old.get(name) != new.get(name):
                yield f"{section} {name} was {old.get(name)}, is {new.get(name)}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _chosen(names: Sequence[str]) -> dict[str, Arm]:
    known = arms()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidArgument(f"There is no arm {unknown[0]!r}. Choose of {', '.join(known)}.")
    return {name: arm for name, arm in known.items() if not names or name in names}


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
