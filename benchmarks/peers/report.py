"""What the arena's JSON says, in words: a Markdown table of arms and one of goals for each contest, and a plot."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.parts import JSON
from benchmarks.peers.ratios import (
    ENGINE,
    EQUAL,
    OURS,
    OWN,
    TOLD,
    UNKNOWN,
    UNSURE,
    goals,
    least,
    measured,
    spread,
    summarise,
)
from runtime.errors import InvalidArgument

__all__ = [
    "KIND",
    "OURS",
    "SCHEMA_VERSION",
    "TOLD",
    "UNKNOWN",
    "UNSURE",
    "goals",
    "markdown",
    "plot",
    "quality_in_words",
    "read",
    "summarise",
    "threads_in_words",
    "times_in_words",
    "wanted_in_words",
]

SCHEMA_VERSION, KIND = 2, "s2f-peers"
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
LONGEST = 160
"""Characters of a reason in the table."""


def markdown(report: JSON) -> str:
    """All tables, and the conditions they hold under."""
    parts = []
    for contest in report["contests"]:
        parts += [_table(report, contest), _goals_table(report, contest), _conditions(contest)]
    return "\n\n".join([*parts, _notes(report)]) + "\n"


def plot(report: JSON) -> bytes:
    """A PNG: a dot per arm and number of threads at its median, a line over the medians of its rounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    contests = [contest for contest in report["contests"] if measured(contest)]
    width = max(1, len(contests))
    figure, axes = plt.subplots(1, width, figsize=(5.4 * width, 4), squeeze=False, layout="constrained")
    for axis, contest in zip(axes[0], contests, strict=False):
        found = {name: spread(arm) for name, arm in measured(contest).items()}
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
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}. Give the JSON of an earlier run.") from None
    if not isinstance(report, dict) or (report.get("kind"), report.get("schema_version")) != (KIND, SCHEMA_VERSION):
        raise InvalidArgument(f"{path} is no report of the arena of this release. Run it again.")
    return report


def _table(report: JSON, contest: JSON) -> str:
    summary = summarise(contest)
    titles = (
        *(threads_in_words(contest), "precision", "ms p50", "rounds, least–most"),
        f"{summary.get('base', 'ours')} is × faster",
        *("fastest of ours at equal precision is × faster", "PSNR dB", "cosine", "steps", ""),
    )
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    found = summary.get("arms", {})
    for name in sorted(found, key=lambda name: found[name]["p50"]):
        line, arm, about = found[name], contest["arms"][name], report["arms"][name]
        spread = f"{line['rounds']}: {line['least']:.1f}–{line['most']:.1f}"
        spread += f" ({line['dirty']} dirty)" if line["dirty"] else ""
        equal = "—" if name == line["equal_to"] else times_in_words(line["equal"])
        cells = [
            f"**{name}**" if name == summary["base"] else name,
            arm["precision"],
            f"{line['p50']:.1f}",
            spread,
            "—" if name == summary["base"] else times_in_words(line["times"]),
            f"{equal} {line['equal_to']}" if equal not in ("", "—") else equal,
            *quality_in_words(arm, about),
            str(about["steps"]),
            about["what"],
        ]
        rows.append(f"| {' | '.join(cells)} |")
    failed = {name: arm["error"] for name, arm in contest["arms"].items() if "error" in arm}
    for name, why in {**contest["missing"], **failed}.items():
        cells = [name, "", "—", *[""] * 5, str(report["arms"][name]["steps"]), _brief(why)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _brief(reason: str) -> str:
    """The beginning of a message that may hold a whole trace, fit for a cell."""
    line = " ".join(reason.replace("|", "/").split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _goals_table(report: JSON, contest: JSON) -> str:
    head = (
        f"| goals, {threads_in_words(contest)} | against | compared | wanted | measured | PSNR dB, cosine | theirs | |"
    )
    rows, found = [head, "|---" * 8 + "|"], list(goals(contest))
    for goal in found:
        quality = []
        for name in (goal["ours"], goal["peer"]):
            arm = contest["arms"].get(name)
            quality.append(", ".join(filter(None, quality_in_words(arm, report["arms"][name]))) if arm else "")
        verdict = goal["verdict"] if goal["verdict"] in ("met", TOLD) else f"**{goal['verdict']}**"
        wanted = wanted_in_words(goal["wanted"])
        cells = [goal["ours"], goal["peer"], "; ".join(goal["compared"]), wanted, times_in_words(goal["times"])]
        rows.append(f"| {' | '.join([*cells, *quality, verdict])} |")
    return "\n".join([*rows, "", *_verdicts(found)])


def _verdicts(found: list[JSON]) -> Iterator[str]:
    """A line for each verdict but "met", so that what is missed is not to be searched for."""
    kinds = dict.fromkeys(goal["verdict"] for goal in found if goal["verdict"] not in ("met", TOLD))
    if not kinds:
        yield "All goals are met."
    for kind in kinds:
        told = [
            f"{goal['ours']} against {goal['peer']} ({'; '.join(goal['compared'])}"
            + (f": {goal['times']['value']:.2f}, wanted {wanted_in_words(goal['wanted'])})" if goal["times"] else ")")
            for goal in found
            if goal["verdict"] == kind
        ]
        yield f"- **{kind}**: {', '.join(told)}"


def wanted_in_words(wanted: float | None) -> str:
    """The ratio by which a goal is judged; empty where it is not."""
    return "" if wanted is None else f"{'not behind: ' if wanted == 1 else ''}≥ {least(wanted):g} ×"


def quality_in_words(arm: JSON, about: JSON) -> list[str]:
    """PSNR in dB and cosine to ours in float32, for a table."""
    if about["random"]:
        return ["random weights", ""]
    quality = arm.get("quality")
    if quality is None:
        return ["", ""]
    return ["identical" if quality["identical"] else f"{quality['psnr_db']:.1f}", f"{quality['cosine']:.5f}"]


def times_in_words(found: JSON | None) -> str:
    """A ratio with its interval; empty where there is none."""
    return "" if found is None else f"{found['value']:.2f} ({found['low']:.2f}–{found['high']:.2f})"


def threads_in_words(contest: JSON) -> str:
    """How many threads every arm of a contest had."""
    count = contest["threads"]
    return "one thread" if count == 1 else f"{count} threads"


def _conditions(contest: JSON) -> str:
    """Where and when a contest was measured: contests of one file may be of different times."""
    machine, blocks = contest["machine"], list(_blocks(contest))
    loads = [load for one in blocks for load in (*one["load_before"], *one["load_after"]) if load is not None]
    others = [one["others"] for one in blocks if one["others"] is not None]
    versions = ", ".join(f"{name} {version}" for name, version in contest["versions"].items() if version)
    notes = [
        f"{threads_in_words(contest)}, {contest['began']} to {contest['ended']}: {machine['cpu']}, "
        f"{machine['usable_cores']} cores usable, {' '.join(machine['cpu_flags'])}",
        f"load average {machine['load']} before, {min(loads, default=0):.1f} to {max(loads, default=0):.1f} while "
        f"measuring (the arms themselves included); other programs took {max(others, default=0):.0%} of the CPU time "
        "in the worst turn",
        versions,
    ]
    return "\n".join(f"- {note}" for note in notes)


def _blocks(contest: JSON) -> Iterator[JSON]:
    for arm in contest["arms"].values():
        yield from (one["conditions"] for one in arm["rounds"])


def _notes(report: JSON) -> str:
    notes = [
        f"bundle {report['bundle']['name']} {report['bundle']['sha256'][:12]}, {report['settings']['steps']} steps "
        "where nothing else is said, batch 1, from six seconds of PCM in memory to uint8 pixels in memory",
        "ratios: of medians over paired rounds, with a 95 % interval by bootstrap; PSNR and cosine: portraits of the "
        "same seeds against float32 (ours on the CPU)",
        "the fastest of ours is chosen by the rounds its ratios are of; the intervals do not cover the choice",
        f'"{EQUAL}": the fastest of ours in the peer\'s precision; "{ENGINE}": ours and the peer by hand on one '
        f'engine; "{OWN}": two precisions of ours on one device',
        'met: the whole interval is above what is wanted; missed: the ratio is below it, "within the interval" where '
        "the interval reaches it; not certain: only the interval's lower end is below it",
    ]
    return "\n".join(f"- {note}" for note in notes)
