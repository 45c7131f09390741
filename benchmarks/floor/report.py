"""What the JSON of `python -m benchmarks.floor` says, in words: floors, times over them, verdicts on the stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.floor.stages import KINDS, by_kind
from benchmarks.gpu.parts import JSON
from runtime.bundle import STAGES
from runtime.errors import InvalidArgument

SCHEMA_VERSION, KIND = 1, "s2f-floor"
LIMIT = 1.6
"""Times its floor that a stage may take."""
TOLD = 5
"""Operators beside the convolutions that a verdict names."""
WIDTH = {"fp32": 1.0, "bf16": 0.5, "int8": 0.25}
"""Bytes of a number, as a share of float32's."""


def floor_ms(cost: JSON, found: JSON, precision: str) -> JSON | None:
    """Milliseconds of a stage: what arithmetic and traffic need, and the floor; None without a peak of this precision.

    As if all matrix work were in this precision: where a variant leaves layers in float the floor is too low.
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
    """What is counted, what the machine can, measured over floor, and a verdict on every stage."""
    parts = [_counted(report["costs"])]
    for run in report["runs"]:
        parts += [_peaks(run), _over(report["costs"], run), "\n".join(_verdicts(report["costs"], run))]
    machine = report["machine"]
    parts.append(f"{machine['cpu']}, {' '.join(machine['cpu_flags'])}; load {machine['load']}; {report['time']}")
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
        f"{rate:.0f} G{'OP' if precision == 'int8' else 'FLOP'}/s {precision} ({found['best'][precision]})"
        for precision, rate in found["gflops"].items()
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


def _verdicts(counted: JSON, run: JSON) -> Iterator[str]:
    """A line per stage: whether it is within LIMIT of its floor, and if not, what it is above it by."""
    busy = run["conditions"]["dirty"]
    if busy:
        yield f"- {_threads(run)}: **not judged**: {'; '.join(busy)}"
        return
    for name, engine in run["engines"].items():
        for stage in STAGES:
            floor = floor_ms(counted[stage], run["peaks"], engine["precision"])
            if floor is not None:
                yield f"- {name}, {stage}, {_threads(run)}: {verdict(engine, stage, floor)}"


def verdict(engine: JSON, stage: str, floor: JSON) -> str:
    """Of one stage, in words. Judged by the median; the best call is told where it says something else."""
    middle, best = (engine["ms"][stage][which] / floor["floor"] for which in ("p50", "best"))
    if middle <= LIMIT:
        return f"within {LIMIT:g} × its floor ({middle:.2f})"
    said = f"**not within {LIMIT:g} × its floor** ({middle:.2f}"
    said += f"; its best call is, {best:.2f})" if best <= LIMIT else f", at best {best:.2f})"
    return f"{said}. {above(engine['operators_ms'][stage], floor)}"


def above(spent: JSON, floor: JSON) -> str:
    """What the engine's profile says of the time of a stage: its convolutions beside their floor, and the largest of
    the rest with their shares. `spent`: milliseconds by operator, the largest first.
    """
    whole, kinds = sum(spent.values()) or 1.0, by_kind(spent)
    ours, least = kinds.get("convolution", 0.0), floor["by_kind"].get("convolution", 0.0)
    rest = [(operator, ms) for operator, ms in spent.items() if operator not in KINDS["convolution"]][:TOLD]
    told = ", ".join(f"{operator} {ms:.2f} ({ms / whole:.0%})" for operator, ms in rest)
    return (
        f"Of {whole:.2f} ms in the profile the convolutions take {ours:.2f} ({ours / whole:.0%}; their floor is "
        f"{least:.2f}), the rest {whole - ours:.2f} ({1 - ours / whole:.0%}): {told}"
    )


def read(path: Path) -> JSON:
    """A report from its file. Raises InvalidArgument where it is none."""
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}. Give the JSON of an earlier run.") from None
    if not isinstance(report, dict) or (report.get("kind"), report.get("schema_version")) != (KIND, SCHEMA_VERSION):
        raise InvalidArgument(f"{path} is no report of the floor of this release. Run it again.")
    return report
