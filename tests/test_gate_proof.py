"""The proof of the gate: what was not judged is run again, a few times, and counted."""

from __future__ import annotations

import json

import pytest

from benchmarks import gate
from benchmarks.readme import GATE, ROOT
from runtime.errors import CODES

BUSY, SLOWER = CODES["NotJudged"], CODES["Slower"]


@pytest.mark.parametrize(
    ("statuses", "again", "ended"),
    [
        ([SLOWER], 5, (SLOWER, 1)),
        ([BUSY, BUSY, SLOWER], 5, (SLOWER, 3)),
        ([BUSY, 0, SLOWER], 5, (0, 2)),
        ([BUSY] * 9, 5, (BUSY, 6)),
        ([BUSY, SLOWER], 0, (BUSY, 1)),
    ],
)
def test_what_was_not_judged_is_run_again(statuses: list[int], again: int, ended: tuple[int, int]) -> None:
    runs = iter(statuses)
    assert gate.until_judged(lambda: next(runs), again) == ended


def test_only_slowed_builds_are_run_again() -> None:
    assert [kind for kind, again in gate.AGAIN.items() if again] == ["slowed"]
    assert gate.AGAIN["slowed"] == 5


def test_the_counts_are_those_of_the_runs() -> None:
    found = json.loads((ROOT / GATE).read_text(encoding="utf-8"))
    for kind in gate.AGAIN:
        assert found[kind] == gate.summary([one for one in found["runs"] if one["kind"] == kind])
