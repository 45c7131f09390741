"""A report for a reader: as plain text for a terminal, or as Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

COLUMNS = ("p50", "p90", "p95", "p99", "mean", "min", "max", "count")
CLEAN = "clean: nothing else used the CPU to speak of"
UNKNOWN = "not known: this system does not tell whether other programs used the CPU"
DIRTY = "DIRTY: {0}. The times are not this bundle's alone; measure again on a quiet machine"


_NUMBERS = re.compile(r"\[\s+([-+\d.eE,\s]+?)\s+\]")


def to_json(value: dict[str, Any]) -> str:
    """JSON with lists of numbers on one line each, for files that are kept in a history."""
    text = json.dumps(value, indent=1, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{''.join(found[1].split())}]", text) + "\n"


def to_text(report: dict[str, Any]) -> str:
    """Sections with aligned columns, the verdict on the conditions last."""
    lines = [f"s2f-edge {report['version']}, {report['time']}", ""]
    facts = _facts(report)
    width = max(map(len, facts))
    lines += [f"{name:{width}}  {value}" for name, value in facts.items()]
    for rows in (_calls(report), _once(report)):
        lines += ["", *_aligned(rows)]
    return "\n".join([*lines, "", *verdicts(report)]) + "\n"


def to_markdown(report: dict[str, Any]) -> str:
    """Two tables in milliseconds and the conditions they hold under."""
    lines: list[str] = []
    for rows in (_calls(report), _once(report)):
        lines += [*table(rows), ""]
    lines += [f"- {name}: {value}" for name, value in _facts(report).items()]
    return "\n".join([*lines, *(f"- {' '.join(line.split())}" for line in verdicts(report))]) + "\n"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first row its head."""
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def verdicts(report: dict[str, Any]) -> list[str]:
    """Whether the times can be trusted, in words: those of the calls, and those of what happens once."""
    blocks = report["blocks"]
    disturbed = sum(bool(one["conditions"]["dirty"]) for one in blocks)
    every, quiet = (report[kind].get("end_to_end", {}).get("count", 0) for kind in ("stages_ms", "quiet_ms"))
    return [
        f"calls {_verdict(report['conditions']['calls']['dirty'])}",
        f"      {disturbed} of {len(blocks)} blocks were disturbed; {quiet} of {every} calls were not",
        f"once  {_verdict(report['conditions']['once']['dirty'])}",
    ]


def _verdict(dirty: list[str] | None) -> str:
    if dirty is None:
        return UNKNOWN
    return DIRTY.format("; ".join(dirty)) if dirty else CLEAN


def _facts(report: dict[str, Any]) -> dict[str, str]:
    settings, machine, state = report["settings"], report["machine"], report["state"]
    calls = report["conditions"]["calls"]
    shares = (f"{name} {_percent(calls[name])}" for name in ("own", "others", "steal", "throttled", "stalled"))
    process = {name: value for name, value in report["process"].items() if value is not None}
    energy = {name: value for name, value in (report["energy"] or {}).items() if value is not None}
    facts = {
        "bundle": f"{report['bundle']['name']} {report['bundle']['sha256'][:12]}, {settings['steps']} steps, batch 1",
        "device": f"{settings['device']} in {settings['precision']}, {_count(settings['threads'], 'thread')}, graphs "
        + ("as prepared" if settings["prepared"] else "made ready at load"),
        "calls": f"{settings['runs']} timed after {settings['warmup']} to warm up, {len(report['blocks'])} blocks",
        "machine": f"{machine['id']}: {machine['cpu']}, {_count(machine['usable_cores'], 'usable core')} "
        f"(CPU {machine['affinity']}), {' '.join(machine['cpu_flags'])}",
        "clocks": f"governor {_words(machine['governor'])}, MHz {_words(machine['mhz_min'])} to "
        f"{_words(machine['mhz_max'])}, power mode {_words(machine['power_mode'])}",
        "gpu": "; ".join(_gpu(gpu) for gpu in machine["gpus"]),
        "load": f"{_words(state['before']['load'])} before, {_words(state['after']['load'])} after",
        "cpu time": ", ".join(shares),
        "process": ", ".join(f"{_title(name)} {value:g}" for name, value in process.items()),
        "energy": ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in energy.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
    }
    return {name: value for name, value in facts.items() if value}


def _calls(report: dict[str, Any]) -> list[list[str]]:
    rows = _rows("ms, each call", report["stages_ms"])
    disturbed = any(one["conditions"]["dirty"] for one in report["blocks"])
    quiet = report["quiet_ms"].get("end_to_end")
    return rows + (_rows("", {"end_to_end, undisturbed calls": quiet})[1:] if disturbed and quiet else [])


def _once(report: dict[str, Any]) -> list[list[str]]:
    return _rows("ms, once", report["once_ms"])


def _rows(head: str, stages: dict[str, Any]) -> list[list[str]]:
    rows = [[head, *COLUMNS[:-1], "n"]]
    for name, values in stages.items():
        cells = [f"{values[column]:.2f}" for column in COLUMNS[:-1]]
        rows.append([name.replace("_", " "), *cells, str(values["count"])])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *rest in rows:
        yield "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))])


def _title(name: str) -> str:
    """A field's name for a reader: its unit as one writes it."""
    return name.replace("_", " ").replace(" mib", " MiB")


def _gpu(gpu: dict[str, Any]) -> str:
    parts = [f"{name.replace('_', ' ')} {value}" for name, value in gpu.items() if value is not None and name != "name"]
    return ", ".join([str(gpu["name"]), *parts])


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


def _words(value: Any) -> str:
    if value is None or value == []:
        return "unknown"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
