"""Which of several arms draws faster, on a quiet machine and on a busy one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tiny_bundle import write_tiny_bundle

from export import trial
from runtime.bench import Block, report
from runtime.bundle import Bundle, read_bundle
from runtime.executor import Clock, Executor, Image, Work

DIRTY = "other programs took 50% of the CPU time, 5% is the limit"


class Sleeper(Executor):
    """Draws nothing, in the milliseconds it is told."""

    def __init__(self, milliseconds: float) -> None:
        self.seconds = milliseconds / 1e3

    def paint(self, work: Work, clock: Clock) -> list[Image]:
        time.sleep(self.seconds)
        return []

    def encode(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return pcm

    def close(self) -> None:
        """Nothing to give back."""


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "PATIENCE", 0.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_tiny_bundle(tmp_path / "tiny"))


def busy(monkeypatch: pytest.MonkeyPatch, *, from_block: int) -> None:
    """A machine on which something else runs from some block on."""
    real, seen = report.block, [0]

    def block(*arguments: Any) -> Block:
        seen[0] += 1
        found = real(*arguments)
        dirty = seen[0] >= from_block
        conditions = {**found.conditions, "others": 0.5 if dirty else 0.0, "steal": 0.0, "throttled": None}
        timed = {name: type(one)(one.raw_ms, None) for name, one in found.works.items()}
        return Block(timed, {**conditions, "dirty": [DIRTY] if dirty else []})

    monkeypatch.setattr(report, "block", block)


def test_which_form_is_faster(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    busy(monkeypatch, from_block=99)
    told: list[str] = []
    assert trial.is_no_slower(bundle, Sleeper(1), Sleeper(6), 4, told.append)
    assert not trial.is_no_slower(bundle, Sleeper(6), Sleeper(1), 4, told.append)
    assert all("4 steps: " in line and "as a chain of stages" in line for line in told)


@pytest.mark.parametrize(("from_block", "disturbed"), [(1, True), (2, True), (3, False)])
def test_a_busy_machine_is_measured_and_told_of(
    from_block: int, disturbed: bool, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy(monkeypatch, from_block=from_block)
    told: list[str] = []
    found = trial.medians({"slow": Sleeper(4), "fast": Sleeper(1)}, trial.work(bundle, 4), told.append)
    assert list(found) == ["slow", "fast"]
    assert found["slow"] > 2 * found["fast"]
    assert [line.startswith("measured on a busy machine") for line in told] == [True] * disturbed
    assert not disturbed or "other programs took" in told[0]
