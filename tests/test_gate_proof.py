"""The proof of the gate: what was not judged is run again, a few times, and counted."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gate
from benchmarks.readme import GATE, ROOT
from runtime import bench
from runtime.errors import CODES, BackendFailed

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


@pytest.mark.parametrize(("kind", "ended"), [("slowed", (SLOWER, 3)), ("same_build", (BUSY, 1)), ("busy", (BUSY, 1))])
def test_only_slowed_builds_are_run_again(kind: str, ended: tuple[int, int], tmp_path: Path) -> None:
    base, out, statuses = baseline(), tmp_path / "run.json", iter([BUSY, BUSY, SLOWER])

    def once() -> int:
        out.write_text(json.dumps(base), encoding="utf-8")
        return next(statuses)

    found = gate.judged(kind, out, base, once)
    assert (found["status"], found["tries"]) == ended
    assert (found["kind"], found["judged"], found["ratio"]["value"]) == (kind, True, 1.0)


@pytest.mark.parametrize(("status", "writes"), [(0, False), (42, True), (-9, False)])
def test_a_run_that_measured_nothing(
    status: int, writes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.json"
    out.write_text("of the run before", encoding="utf-8")

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert not out.exists()
        if writes:
            out.write_text("{}", encoding="utf-8")
        return subprocess.CompletedProcess(command, status, "", "the reason")

    monkeypatch.setattr(gate.bench, "wait_for_quiet", lambda _: None)
    monkeypatch.setattr(gate.subprocess, "run", run)
    with pytest.raises(BackendFailed, match="the reason"):
        gate.child("same_build", out, 0.3)


def test_a_run_is_as_the_baseline_was(monkeypatch: pytest.MonkeyPatch) -> None:
    base, asked = baseline(), []
    base["settings"].update(device="cpu", precision="int8", threads=1, steps=4, prepared=False)
    monkeypatch.setattr(gate.cli, "main", lambda arguments: asked.append(arguments) or 0)
    monkeypatch.setenv("S2F_CACHE", "the user's")
    with gate.own_cache(base):
        own = Path(os.environ["S2F_CACHE"])
        assert not list(own.iterdir())
        assert gate.held(base, "--device=openvino") == 0
    assert os.environ["S2F_CACHE"] == "the user's"
    assert not own.exists()
    assert {"--device=cpu", "--precision=int8", "--threads=1", "--steps=4"} < set(asked[0])
    assert asked[0][-1] == "--device=openvino"


def test_a_prepared_baseline_needs_a_prepared_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    base, asked = baseline(), []
    base["settings"].update(device="cpu", prepared=True)
    monkeypatch.setattr(gate, "prepare", lambda _, device, __: asked.append(device))
    with gate.own_cache(base):
        assert asked == ["cpu"]


def baseline() -> dict[str, Any]:
    found: dict[str, Any] = bench.read_report(next(gate.BASELINES.glob("*.json")))
    return found


def test_the_counts_are_those_of_the_runs() -> None:
    found = json.loads((ROOT / GATE).read_text(encoding="utf-8"))
    for kind in gate.AGAIN:
        assert found[kind] == gate.summary([one for one in found["runs"] if one["kind"] == kind])
