"""What the JSON of `python -m benchmarks.cold` says, in words: the steps of each arm, imports, how files are read."""

from __future__ import annotations

import statistics
from typing import Any

from runtime.errors import ParityFailed

JSON = dict[str, Any]

OTHERS, ENOUGH = 0.06, 3
"""The share of the CPU time that others may use beside a counted process; so many clean ones are enough."""
SAME = ("cpu", "cpu, prepared")
"""Arms that must draw the same, byte for byte."""


def counted(ones: list[JSON]) -> list[JSON]:
    """The undisturbed of one arm, all where these are too few."""
    clean = [one for one in ones if undisturbed(one)]
    return clean if len(clean) >= ENOUGH else ones


def undisturbed(one: JSON) -> bool:
    """Whether other programs used little of the processor while a process ran."""
    return one["others"] is not None and one["others"] <= OTHERS


def check_alike(cold: dict[str, list[JSON]]) -> str:
    """Says that the arms of SAME drew the same, byte for byte. Raises ParityFailed where they did not."""
    drawn = {one["image"] for name in SAME for one in cold[name]}
    if len(drawn) != 1:
        raise ParityFailed(f"The processes of {' and '.join(SAME)} drew {len(drawn)} different images.")
    return f"all processes of {' and '.join(SAME)} drew the same image, byte for byte"


def tables(report: JSON) -> str:
    """Markdown: medians of each step by arm, what importing takes, and how files are read. Raises ParityFailed."""
    arms = {name: counted(ones) for name, ones in report["cold"].items()}
    steps = list(dict.fromkeys(step for ones in arms.values() for one in ones for step in one["ms"] if step != "all"))

    def median(ones: list[JSON], kind: str, name: str) -> float:
        return statistics.median(one[kind].get(name, 0.0) for one in ones)

    def row(name: str, kind: str, key: str, digits: int) -> str:
        return f"| {name} | " + " | ".join(f"{median(ones, kind, key):.{digits}f}" for ones in arms.values()) + " |"

    lines = [f"| ms, medians | {' | '.join(map(_head, arms.items()))} |", "|---" * (len(arms) + 1) + "|"]
    lines += [row(step, "ms", step, 1) for step in steps]
    lines += [row("**process to saved PNG**", "ms", "all", 0), row("peak memory, MiB", "mib", "peak", 1)]
    lines += [row("of it the process' own, at the end", "mib", "private", 1)]
    notes = [f"{name}: {sum(map(undisturbed, ones))} of {len(ones)}" for name, ones in report["cold"].items()]
    told = ", ".join(f"{name} {value:.1f}" for name, value in report["imports_ms"].items())
    read = ", ".join(f"{name} {statistics.median(values):.1f}" for name, values in report["files_ms"].items())
    versions = report["versions"]
    lines += [
        "",
        f"Undisturbed processes: {'; '.join(notes)}. Of an arm with fewer than {ENOUGH} all are counted.",
        f"{report['cores']} cores of an {report['cpu']}, ONNX Runtime {versions['onnxruntime']}, OpenVINO "
        f"{versions['openvino']}; {check_alike(report['cold'])}.",
        "",
        f"Importing, ms: {told}",
        "",
        f"Reading and hashing the {report['files_mb']:.0f} MB of graphs, ms: {read}",
    ]
    return "\n".join(lines)


def _head(arm: tuple[str, list[JSON]]) -> str:
    """The device asked for, and how its processes drew: precision, whether prepared, the device if it is another."""
    name, ones = arm
    asked = name.partition(",")[0]

    def kind(one: JSON) -> str:
        took = "" if one["device"] == asked else f"{one['device']} "
        return f"{took}{one['precision']}, {'' if one['prepared'] else 'not '}prepared"

    return f"{asked}: {' or '.join(sorted(set(map(kind, ones))))}"
