"""The report of an evaluation: quality.md, quality.csv, quality.json, and prior.md, prior.csv where a weight was swept.

No date, no path: the same command writes the same bytes. Titles name unit, scale and whose features are compared, and
over every table stands how well the judge itself reads.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.corpus.table import write_atomic
from training.evaluate.judge import NAME
from training.evaluate.metrics import RANKS
from training.evaluate.plots import prior_plot, steps_plot
from training.evaluate.protocol import Result, Row


@dataclass(frozen=True)
class Column:
    """A value of `protocol.Row.values`: its title and decimals."""

    key: str
    title: str
    decimals: int


READING = (
    Column("sex", "sex as the voice's, %", 1),
    Column("age_mae", "age, mean absolute error, years", 1),
    Column("age_within", "age with abs. difference <= 10 years, %", 1),
    Column("same_voice", "cosine, same voice, other seed", 3),
    Column("other_voice", "cosine, other voice", 3),
    Column("kid", "KID x1000", 2),
    Column("kid_deviation", "KID x1000, deviation over subsets", 2),
    Column("fid", "FID", 2),
)
IDENTITY = (
    Column("cosine", "cosine", 3),
    Column("angle", "angle, degrees", 1),
    Column("one_minus_cosine", "1 - cosine", 3),
    Column("l1", "L1 (sum), raw", 2),
    Column("l2", "L2, raw", 2),
    Column("l1_unit", "L1 (sum), unit length", 3),
    Column("l2_unit", "L2, unit length", 3),
)
RETRIEVAL = tuple(Column(f"r{rank}", f"R@{rank}, %", 1) for rank in RANKS)
AGAINST = (
    Column("kid", "KID, difference in %", 1),
    Column("cosine", "cosine to the real person, difference in %", 1),
)
PRIOR = (
    IDENTITY[0],
    Column("cosine_variance", "variance of the cosine", 4),
    READING[0],
    READING[1],
    READING[3],
    RETRIEVAL[3],
)
ALL = (*READING, *IDENTITY, Column("cosine_variance", "variance of the cosine", 4), *RETRIEVAL)


def write_report(result: Result, out: Path) -> list[Path]:
    """Writes every file of the report into an existing folder and returns their paths. Raises OSError."""
    files = {
        "quality.md": quality_markdown(result).encode(),
        "quality.csv": as_csv(result.rows, ALL).encode(),
        "quality.json": as_json(result).encode(),
        "steps.png": steps_plot(result),
    }
    if result.prior:
        files |= {
            "prior.md": prior_markdown(result).encode(),
            "prior.csv": as_csv(result.prior, PRIOR).encode(),
            "prior.png": prior_plot(result),
        }
    for name, data in files.items():
        write_atomic(out / name, data)
    return [out / name for name in files]


def quality_markdown(result: Result) -> str:
    """Three tables of the rows with a face, and one of voices that have none."""
    facts = result.facts
    faces = [row for row in result.rows if row.voices == "synthetic"]
    others = [row for row in result.rows if row.voices != "synthetic"]
    features = f"{NAME} features"
    gallery, chance = facts["galleries"], facts["chance_percent"]
    by_chance = ", ".join(f"R@{rank} {chance[str(rank)]:g} %" for rank in RANKS)
    parts = [
        "# Quality",
        preface(facts),
        "## Sex, age, diversity, distribution",
        caption(facts, f"KID and FID on {features}, against the {facts['voices']} real portraits."),
        as_table(faces, READING),
        "## Identity",
        caption(facts, f"Each portrait against the mean {features} of its real person; means over all portraits."),
        as_table(faces, IDENTITY),
        "## Retrieval",
        caption(facts, f"Disjoint galleries: {gallery['count']}, of {gallery['size']} people; chance: {by_chance}."),
        as_table(faces, RETRIEVAL),
    ]
    reference = reference_of(faces)
    if reference is not None:
        parts += [
            f"## Against {reference.arm} with {reference.steps} steps",
            caption(facts, "How much each row above differs from it; KID is better the lower, the cosine the higher."),
            as_table([against(row, reference) for row in faces if row.steps is not None], AGAINST),
        ]
    if others:
        parts += [
            "## Real recordings",
            caption(facts, "The test split's speakers as they were recorded, each once: only their sex is known."),
            as_table(others, (READING[0], *READING[3:5])),
        ]
    return "\n\n".join(parts) + "\n"


def reference_of(rows: Sequence[Row]) -> Row | None:
    """The row of the most steps, which few steps are compared with; None where nothing was painted in steps."""
    painted = [row for row in rows if row.steps is not None]
    return max(painted, key=lambda row: row.steps or 0) if painted else None


def against(row: Row, reference: Row) -> Row:
    """The row with what its values in `AGAINST` differ from the reference's, in percent of it."""
    values: dict[str, float | None] = {}
    for key in (column.key for column in AGAINST):
        own, other = row.values.get(key), reference.values.get(key)
        values[key] = None if own is None or not other else 100 * (own - other) / abs(other)
    return dataclasses.replace(row, values=values)


def prior_markdown(result: Result) -> str:
    """The sweep of SCLDM's figure 6, for the arms whose prior weight may vary."""
    text = f"Cosine of {NAME} features between portrait and real person, mean and variance over all portraits."
    return (
        "\n\n".join(["# Weight of the face prior", caption(result.facts, text), as_table(result.prior, PRIOR)]) + "\n"
    )


def preface(facts: Mapping[str, Any]) -> str:
    """What was measured, with what, and how to read the first rows."""
    lines = [
        f"{facts['voices']} voices of the test split of corpus {facts['corpus']['fingerprint'][:12]} "
        f"(`{facts['corpus']['command']}`), made from "
        f"recordings of {facts['speakers']} people of whom its train split has none; {facts['seeds']} portraits of "
        f"each, every one with a seed of its own, counted up from {facts['seed']}, which seeds all other draws too.",
        f"Judge: {NAME} ({facts['judge']['sha256'][:12]}), trained on renders of synthetic heads (it finds a face in "
        "every picture, so none counts as undetected). Its numbers hold for portraits of that world, and compare with "
        "no other network's.",
        f"“real portraits”: what the judge makes of the renders themselves; identity from {facts['real_views']}, KID "
        "and FID between two halves of them, so of half the size. “another's portrait”: each voice with the real "
        "portrait of somebody else.",
        "The voice decides by how much “same voice, other seed” exceeds “other voice”.",
        "FID grows as n shrinks: compare rows of equal n. Voices, ages and faces are of an invented world and say "
        "nothing about people.",
    ]
    arms = []
    for arm in facts["arms"]:
        known = ", ".join(f"{key} {value}" for key, value in arm["facts"].items())
        arms.append(f"- {arm['name']}: {known}; sha256 {arm['identity']}")
    return "\n\n".join([*lines, "\n".join(arms)])


def caption(facts: Mapping[str, Any], text: str) -> str:
    """The line over a table: what it shows, and how well the judge reads."""
    accuracy = facts["judge"]["accuracy"]
    reads = "; ".join(
        f"{name} {one['sex_percent']:.1f} % sex, age ± {one['age_mae_years']:.1f} years, "
        f"{one['age_within_10_percent']:.1f} % within 10"
        for name, one in accuracy.items()
        if isinstance(one, dict)
    )
    known = f"on {accuracy['renders']} unseen renders: {reads}" if reads else "its accuracy was never measured"
    return f"{text} Judge {NAME}, {known}."


def as_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A Markdown table; a value that does not exist is a dash."""
    head = ("arm", "steps", "prior", "voices", "portraits", *(column.title for column in columns))
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join([*_start(row), *(_text(row, column) for column in columns)]) + " |" for row in rows]
    return "\n".join(lines)


def as_csv(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """All rows with full precision; a value that does not exist is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["arm", "kind of voices", "voices", "seeds", "steps", "prior weight", *(column.title for column in columns)]
    )
    for row in rows:
        values = [row.values.get(column.key) for column in columns]
        writer.writerow([
            row.arm, row.voices, row.n, row.seeds, *("" if v is None else v for v in (row.steps, row.prior_weight)),
            *("" if value is None else f"{value:.6g}" for value in values),
        ])  # fmt: skip
    return text.getvalue()


def as_json(result: Result) -> str:
    """Facts and rows, for other programs."""
    value = {
        **result.facts,
        "rows": [dataclasses.asdict(row) for row in result.rows],
        "prior": [dataclasses.asdict(row) for row in result.prior],
    }
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _start(row: Row) -> tuple[str, ...]:
    steps = "–" if row.steps is None else str(row.steps)
    weight = "–" if row.prior_weight is None else f"{row.prior_weight:g}"
    return row.arm, steps, weight, str(row.n), str(row.n * row.seeds)


def _text(row: Row, column: Column) -> str:
    value = row.values.get(column.key)
    return "–" if value is None else f"{value:.{column.decimals}f}"
