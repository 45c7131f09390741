"""What the arena's JSON says, in words: ratios with intervals, goals, a Markdown table and a plot."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.gpu.parts import JSON
from runtime.bench import ratio
from runtime.errors import InvalidArgument

SCHEMA_VERSION, KIND = 1, "s2f-peers"
FEWEST_CLEAN = 3
"""Clean rounds without which the dirty ones are taken too, and said to be."""
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
LONGEST = 160
"""Characters of a reason in the table."""

OURS = "ours "
GOALS = (
    ("diffusers 25 steps", 8.0),
    ("torch eager fp32", 3.0),
    ("onnxruntime naive", 1.8),
    ("openvino f32 by hand", 1.0),
    ("openvino bf16 by hand", 1.0),
)
"""How many times faster than a peer the fastest of ours must be; 1 means not behind."""
EQUALS = (
    ("ours cpu", "torch eager fp32", 3.0),
    ("ours cpu", "onnxruntime naive", 1.8),
    ("ours cpu", "openvino f32 by hand", 1.0),
    ("ours openvino", "torch eager bf16", 3.0),
)
"""The same between arms of one precision. (Ours on OpenVINO is bfloat16 where the processor computes in that.)"""
NOT_BEHIND = 0.95
"""Not to be behind is met where the whole interval is above this."""


def summarise(contest: JSON, ours: str | None = None) -> JSON:
    """Of one contest: `base`, which is `ours` or the fastest of ours; per arm its median, the rounds taken, how many
    times slower it is. Empty where nothing of ours was measured.
    """
    arms = {name: arm for name, arm in contest["arms"].items() if arm["rounds"]}
    medians = {name: _median([one["ms"] for one in _taken(arm)]) for name, arm in arms.items()}
    base = ours or min((name for name in arms if name.startswith(OURS)), key=medians.__getitem__, default=None)
    if base not in arms:
        return {}
    return {"base": base, "arms": {name: _line(arm, arms[base], medians[name]) for name, arm in arms.items()}}


def goals(contest: JSON) -> Iterator[JSON]:
    """One line per goal: whose, the ratio it asks for, what was measured with its interval, and the verdict.

    Met only where the whole interval is, missed where the whole interval is not. Judged by clean rounds alone.
    """
    fastest = summarise(contest).get("base", OURS.strip())
    for ours, peer, wanted in (*((fastest, *goal) for goal in GOALS), *EQUALS):
        arms = summarise(contest, ours).get("arms", {})
        found = arms.get(peer, {}).get("times")
        if found is None or ours not in arms:
            said = "not measured"
        elif arms[peer]["dirty"] or arms[ours]["dirty"]:
            said = "not judged: the machine was busy"
        else:
            said = _verdict(found, NOT_BEHIND if wanted == 1 else wanted)
        yield {"ours": ours, "peer": peer, "wanted": wanted, "times": found, "verdict": said}


def _verdict(found: JSON, wanted: float) -> str:
    if found["high"] < wanted:
        return "missed"
    return "met" if found["low"] >= wanted else "not certain"


def markdown(report: JSON) -> str:
    """All tables, and the conditions they hold under."""
    parts = [part for contest in report["contests"] for part in (_table(report, contest), _goals_table(contest))]
    return "\n\n".join([*parts, _notes(report)]) + "\n"


def plot(report: JSON) -> bytes:
    """A PNG: a dot per arm and number of threads at its median, a line over the medians of its rounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    contests = [contest for contest in report["contests"] if summarise(contest)]
    width = max(1, len(contests))
    figure, axes = plt.subplots(1, width, figsize=(5.4 * width, 4), squeeze=False, layout="constrained")
    for axis, contest in zip(axes[0], contests, strict=False):
        found = summarise(contest)["arms"]
        names = sorted(found, key=lambda name: found[name]["p50"], reverse=True)
        for place, name in enumerate(names):
            line, colour = found[name], "tab:green" if name.startswith(OURS) else "tab:gray"
            axis.plot([line["least"], line["most"]], [place, place], color=colour, linewidth=1.5)
            axis.plot(line["p50"], place, "o", color=colour, markersize=5)
            axis.text(line["p50"], place + 0.15, f"{line['p50']:.1f}", ha="center", va="bottom", fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_xscale("log")
        shown = [tick for tick in TICKS if axis.get_xlim()[0] <= tick <= axis.get_xlim()[1]]
        axis.set_xticks(shown, [str(tick) for tick in shown], fontsize=8)
        axis.minorticks_off()
        axis.set_ylim(-0.5, len(names))
        axis.grid(axis="x", linewidth=0.3)
        axis.set_xlabel("ms, speech to pixels", fontsize=8)
        axis.set_title(threads_in_words(contest), fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def read(path: Path) -> JSON:
    """A report from its file. Raises InvalidArgument where it is none."""
    import json

    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}. Give the JSON of an earlier run.") from None
    if not isinstance(report, dict) or (report.get("kind"), report.get("schema_version")) != (KIND, SCHEMA_VERSION):
        raise InvalidArgument(f"{path} is no report of the arena of this release. Run it again.")
    return report


def _taken(arm: JSON) -> list[JSON]:
    """The clean rounds, or all where those are too few."""
    clean = [one for one in arm["rounds"] if not one["conditions"]["dirty"]]
    return clean if len(clean) >= FEWEST_CLEAN else list(arm["rounds"])


def _line(arm: JSON, base: JSON, median: float) -> JSON:
    taken, rounds = _taken(arm), [_median([one["ms"]]) for one in _taken(arm)]
    pairs = _paired(taken, _taken(base)) or _paired(arm["rounds"], base["rounds"])
    times = None
    if pairs:
        found = ratio([a for a, _ in pairs], [b for _, b in pairs], paired=True)
        times = {"value": found.value, "low": found.low, "high": found.high, "rounds": len(pairs)}
    dirty = sum(bool(one["conditions"]["dirty"]) for one in taken)
    spread = {"p50": round(median, 3), "least": round(min(rounds), 3), "most": round(max(rounds), 3)}
    return {**spread, "rounds": len(taken), "dirty": dirty, "times": times}


def _paired(some: Sequence[JSON], others: Sequence[JSON]) -> list[tuple[list[float], list[float]]]:
    """The milliseconds of both in every round that both have."""
    by_round = {one["round"]: one["ms"] for one in others}
    return [(one["ms"], by_round[one["round"]]) for one in some if one["round"] in by_round]


def _median(rounds: Sequence[Sequence[float]]) -> float:
    return float(np.median(np.concatenate([np.asarray(one) for one in rounds])))


def _table(report: JSON, contest: JSON) -> str:
    summary = summarise(contest)
    head = (
        f"| {threads_in_words(contest)} | ms p50 | rounds, least–most | ours is × faster | PSNR dB | cosine | steps | |"
    )
    rows = [head, "|---" * 8 + "|"]
    found = summary.get("arms", {})
    for name in sorted(found, key=lambda name: found[name]["p50"]):
        line, arm, about = found[name], contest["arms"][name], report["arms"][name]
        times = "—" if name == summary["base"] else _times(line["times"])
        title = f"**{name}**" if name == summary["base"] else name
        spread = f"{line['rounds']}: {line['least']:.1f}–{line['most']:.1f}"
        spread += f" ({line['dirty']} dirty)" if line["dirty"] else ""
        cells = [
            title,
            f"{line['p50']:.1f}",
            spread,
            times,
            *quality_in_words(arm, about),
            str(about["steps"]),
            about["what"],
        ]
        rows.append(f"| {' | '.join(cells)} |")
    failed = {name: arm["error"] for name, arm in contest["arms"].items() if "error" in arm}
    absent = {**contest.get("missing", {}), **failed}
    rows += [
        f"| {name} | — | | | | | {report['arms'][name]['steps']} | {_brief(why)} |" for name, why in absent.items()
    ]
    return "\n".join(rows)


def _brief(reason: str) -> str:
    """The beginning of a message that may hold a whole trace, fit for a cell."""
    line = " ".join(reason.replace("|", "/").split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _goals_table(contest: JSON) -> str:
    rows = [f"| {threads_in_words(contest)} | against | wanted | measured | |", "|---|---|---|---|---|"]
    for goal in goals(contest):
        times = "" if goal["times"] is None else _times(goal["times"])
        rows.append(f"| {goal['ours']} | {goal['peer']} | ≥ {goal['wanted']:g} × | {times} | {goal['verdict']} |")
    return "\n".join(rows)


def quality_in_words(arm: JSON, about: JSON) -> list[str]:
    """PSNR in dB and cosine to ours in float32, for a table."""
    if about["random"]:
        return ["random weights", ""]
    quality = arm.get("quality")
    if quality is None:
        return ["", ""]
    return ["identical" if quality["identical"] else f"{quality['psnr_db']:.1f}", f"{quality['cosine']:.5f}"]


def _times(found: JSON | None) -> str:
    return "" if found is None else f"{found['value']:.2f} ({found['low']:.2f}–{found['high']:.2f})"


def threads_in_words(contest: JSON) -> str:
    """How many threads every arm of a contest had."""
    count = contest["threads"]
    return "one thread" if count == 1 else f"{count} threads"


def _notes(report: JSON) -> str:
    machine, settings = report["machine"], report["settings"]
    loads = [load for load in _loads(report) if load is not None]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    others = [one["conditions"]["others"] for _, one in _all_rounds(report) if one["conditions"]["others"] is not None]
    notes = [
        f"bundle {report['bundle']['name']} {report['bundle']['sha256'][:12]}, {settings['steps']} steps where nothing "
        f"else is said, batch 1, from six seconds of PCM in memory to uint8 pixels in memory",
        f"{machine['cpu']}, {machine['usable_cores']} cores usable, {' '.join(machine['cpu_flags'])}",
        f"load average {min(loads, default=0):.1f} to {max(loads, default=0):.1f} while measuring (the arms themselves "
        f"included); other programs took {max(others, default=0):.0%} of the CPU time in the worst round",
        f"intervals: 95 %, bootstrap over paired rounds; PSNR and cosine: {settings['seeds']} seeds against float32 "
        "(ours on the CPU)",
        versions,
    ]
    return "\n".join(f"- {note}" for note in notes)


def _all_rounds(report: JSON) -> Iterator[tuple[str, JSON]]:
    for contest in report["contests"]:
        for name, arm in contest["arms"].items():
            yield from ((name, one) for one in arm["rounds"])


def _loads(report: JSON) -> Iterator[float | None]:
    for _, one in _all_rounds(report):
        yield from one["conditions"]["load_before"]
        yield from one["conditions"]["load_after"]
