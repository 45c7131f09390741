"""Two reports beside each other: how many times as long the second takes, with intervals, and a gate on it.

Only calls that nothing disturbed are compared, where both reports have enough of them. Where not, the ratios are those
of all calls and the gate is silent: noise must not fail a build. The gate looks at the quick calls, a low percentile: a
guest's host has slow seconds of which nothing tells, and a slower build has no quick calls at all.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidArgument, NotJudged, Slower
from .core import Block, Ratio, flat, ratio, values
from .report import KIND, SCHEMA_VERSION, Doubt
from .system import machine_id
from .text import table

QUIET_CALLS, QUIET_BLOCKS = 30, 3
"""Undisturbed calls, and blocks with any, that both reports must have to be judged."""
MAX_BYTES = 64 * 2**20
SAME = ("device", "precision", "prepared", "threads", "steps", "batch")
"""Settings in which two reports must agree before their times are compared."""
WHOLE = "end_to_end"
QUICK = 5
"""Percentile of the quick calls."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`ratios`: time of the second report by that of the first, per stage. `medians`: of both, in milliseconds.
    `quick`: that of the quick whole calls, which is what the gate judges. `judged`: both had enough undisturbed calls.
    """

    ratios: dict[str, Ratio]
    medians: dict[str, tuple[float, float]]
    quick: Ratio
    judged: bool
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"schema_version": 1, "kind": "s2f-bench-comparison", **dataclasses.asdict(self)}


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A report that `s2f bench --json` wrote. Raises InvalidArgument for anything else."""
    place = Path(path)
    try:
        if place.stat().st_size > MAX_BYTES:
            raise InvalidArgument(f"{place} is larger than {MAX_BYTES // 2**20} MiB and no report of s2f bench.")
        report = json.loads(place.read_bytes())
    except OSError as error:
        raise InvalidArgument(f"{place} cannot be read: {error.strerror}. Make it with s2f bench --json.") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{place} is no JSON: {error}. Make it anew with s2f bench --json.") from None
    if not isinstance(report, dict) or report.get("kind") != KIND:
        raise InvalidArgument(f"{place} is no report of s2f bench. Make it with s2f bench --json.")
    version = report.get("schema_version")
    if version != SCHEMA_VERSION:
        problem = f"{place} has the schema version {version!r:.20}, this release reads {SCHEMA_VERSION}."
        raise InvalidArgument(f"{problem} Measure again with s2f bench --json.")
    try:
        _check(report)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InvalidArgument(f"{place} is damaged: values are missing or no numbers. Measure again.") from None
    return report


def baseline(place: str | os.PathLike[str]) -> Path:
    """The report to hold this machine against: a file, or the file of this machine in a folder.

    Raises InvalidArgument where the folder has none.
    """
    path = Path(place)
    if not path.is_dir():
        return path
    own = path / f"{machine_id()}.json"
    if not own.is_file():
        raise InvalidArgument(
            f"{path} has no baseline for this machine ({machine_id()}). While the machine is quiet and the build is "
            f"good, make one: s2f bench --patience 120 --json {own}"
        )
    return own


def compare(first: dict[str, Any], second: dict[str, Any], *, anyway: bool = False) -> Comparison:
    """How many times as long the second report's stages take as the first's.

    Raises InvalidArgument where the bundles, or what SAME names of the settings, differ, unless `anyway`.
    """
    differences = _differences(first, second)
    if differences and not anyway:
        raise InvalidArgument(
            f"The reports differ in more than time: {'; '.join(differences)}. Compare them anyway with --anyway."
        )
    before, after = ([Block.from_json(one) for one in report["blocks"]] for report in (first, second))
    quiet = [values(side, quiet=True) for side in (before, after)]
    calls = [len(flat(side.get(WHOLE, []))) for side in quiet]
    judged = min(calls) >= QUIET_CALLS and min(len(side[WHOLE]) for side in quiet) >= QUIET_BLOCKS
    old, new = quiet if judged else [values(side) for side in (before, after)]
    warnings = [*differences, *_warnings(first, second)]
    if not judged:
        least = f"{QUIET_CALLS} undisturbed calls in {QUIET_BLOCKS} blocks are needed in both"
        warnings.append(f"{least}, there are {calls[0]} and {calls[1]} calls: all are compared, and nothing is judged")
    stages = [name for name in old if name in new and min(map(max, old[name])) > 0]
    return Comparison(
        ratios={name: ratio(new[name], old[name]) for name in stages},
        medians={name: (_median(old[name]), _median(new[name])) for name in stages},
        quick=ratio(new[WHOLE], old[WHOLE], percentile=QUICK),
        judged=judged,
        warnings=warnings,
    )


def doubt(base: dict[str, Any], limit: float) -> Doubt:
    """Whether blocks look slower than a report allows: then more of them, at other times, may show quick calls yet."""
    before = values((Block.from_json(one) for one in base["blocks"]), quiet=True).get(WHOLE, [])

    def looks_slower(blocks: list[Block]) -> bool:
        after = values(blocks, quiet=True).get(WHOLE, [])
        if not before or not after:
            return False
        old, new = (float(np.percentile(flat(side), QUICK)) for side in (before, after))
        return new > limit * old

    return looks_slower


def gate(comparison: Comparison, limit: float) -> str:
    """The verdict in words. Raises Slower where the whole interval of the quick calls lies above `limit`.

    Raises NotJudged where too few calls were undisturbed, InvalidArgument for a limit that is no ratio.
    """
    if not math.isfinite(limit) or limit < 1:
        raise InvalidArgument(f"The largest ratio must be a number of 1 or more, not {limit!r:.40}.")
    if not comparison.judged:
        raise NotJudged("Not judged: the machine was not quiet for long enough. Measure again with more --patience.")
    found = comparison.quick
    text = f"the quick calls (p{QUICK}) take {_words(found)} times as long, {limit:g} is the limit"
    if found.low > limit:
        raise Slower(f"Slower than before: {text}. Find what slowed it down, or make a new baseline.")
    return f"good: {text}" if found.high <= limit else f"not slower for sure: {text}"


def comparison_text(comparison: Comparison) -> str:
    """A Markdown table and the warnings."""
    rows = [["ms, p50", "first", "second", "second / first (95 % of the spread within both runs)"]]
    for name, found in comparison.ratios.items():
        medians = (f"{value:.2f}" for value in comparison.medians[name])
        rows.append([name.replace("_", " "), *medians, _words(found)])
    rows.append([f"end to end, p{QUICK}", "", "", _words(comparison.quick)])
    return "\n".join([*table(rows), "", *(f"- warning: {line}" for line in comparison.warnings)]).rstrip() + "\n"


def _median(blocks: list[list[float]]) -> float:
    return round(float(np.median(flat(blocks))), 4)


def _words(found: Ratio) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _check(report: dict[str, Any]) -> None:
    """What is read of a report is there and of its kind. KeyError, TypeError, AttributeError, ValueError if not."""
    for name in ("settings", "bundle", "machine", "versions", "conditions"):
        report[name].keys()
    found = [report["bundle"]["sha256"], report["machine"]["id"], *(report["settings"][name] for name in SAME)]
    if not all(isinstance(value, (str, int)) for value in found):
        raise TypeError
    _reasons(report["conditions"]["calls"])
    blocks = [Block.from_json(one) for one in report["blocks"]]
    if not any(one.works[WHOLE].raw_ms[WHOLE] for one in blocks):
        raise ValueError("no calls")


def _reasons(conditions: dict[str, Any]) -> list[str]:
    return [str(reason) for reason in conditions["dirty"] or []]


def _differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    pairs = {name: (first["settings"][name], second["settings"][name]) for name in SAME}
    pairs["bundle"] = (first["bundle"]["sha256"], second["bundle"]["sha256"])
    return [f"{name} {str(a)[:12]} and {str(b)[:12]}" for name, (a, b) in pairs.items() if a != b]


def _warnings(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Why the ratios may say something else than one thinks."""
    found = []
    for name, report in (("first", first), ("second", second)):
        reasons = _reasons(report["conditions"]["calls"])
        found += [f"the {name} run is dirty: {'; '.join(reasons)}"] if reasons else []
    machines = [report["machine"]["id"] for report in (first, second)]
    if machines[0] != machines[1]:
        found.append(f"they ran on different machines: {machines[0]} and {machines[1]}")
    old, new = first["versions"], second["versions"]
    changed = [f"{name} {old.get(name)} → {new[name]}" for name in new if old.get(name) != new[name]]
    return [*found, f"other versions: {', '.join(changed)}"] if changed else found
