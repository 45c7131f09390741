"""Two reports beside each other: ratios, refusals, the gate, and what it makes of bad files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import bench
from runtime.bench import Block, Timed
from runtime.cli import main
from runtime.errors import CODES, InvalidArgument, NotJudged, Slower

CLEAN = {"seconds": 1.0, "own": 0.9, "others": 0.0, "steal": 0.0, "stalled": 0.0, "throttled": None, "dirty": []}
DIRTY = {**CLEAN, "others": 0.5, "dirty": ["other programs took 50% of the CPU time, 5% is the limit"]}


def made(
    slow: float = 1.0,
    *,
    seed: int = 0,
    dirty: bool = False,
    blocks: int = 8,
    noise: float = 0.02,
) -> Any:
    """A report of calls of about 20 ms · slow, ten in a block."""
    rng = np.random.default_rng(seed)
    conditions = DIRTY if dirty else CLEAN

    def block() -> Block:
        calls = (20 * slow * (1 + noise * rng.standard_normal(10))).tolist()
        raw = {"end_to_end": calls, "decoder": [one / 4 for one in calls], "audio": [0.0] * 10}
        return Block({"end_to_end": Timed(raw, [9.0] * 10)}, conditions)

    return {
        **{"schema_version": bench.SCHEMA_VERSION, "kind": "s2f-bench", "version": "0.1.0"},
        "bundle": {"name": "demo", "sha256": "ab" * 32},
        "settings": {"device": "cpu", "precision": "fp32", "prepared": False, "threads": 2, "steps": 4, "batch": 1},
        "machine": {"id": bench.machine_id()},
        "versions": {"numpy": "2.0"},
        "conditions": {"once": CLEAN, "calls": conditions},
        **bench.figures({"first_call": [1.0]}, [block() for _ in range(blocks)]),
    }


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(report: Any, name: str = "report.json") -> Path:
        path = tmp_path / name
        path.write_text(report if isinstance(report, str) else json.dumps(report))
        return path

    return write


def test_a_ratio_lies_in_its_interval_and_is_always_the_same() -> None:
    rng = np.random.default_rng(1)
    one, two = ([(m + rng.standard_normal(10)).tolist() for _ in range(10)] for m in (26.0, 20.0))
    found = bench.ratio(one, two)
    assert found == bench.ratio(one, two)
    assert 1.2 < found.low < found.value < found.high < 1.4
    assert found.value == pytest.approx(1 / bench.ratio(two, one).value, rel=1e-3)


def test_slow_seconds_widen_the_interval_unless_they_met_both() -> None:
    """Blocks of which nearly half were slow: what single calls would hide, blocks show."""
    slow = [[20.0 + 10 * (i % 2)] * 10 for i in range(9)]
    apart, together = bench.ratio(slow, slow), bench.ratio(slow, slow, paired=True)
    assert apart.high - apart.low > 0.4
    assert (together.low, together.high) == (1, 1)


def test_a_single_block_has_an_interval() -> None:
    found = bench.ratio([[10.0, 11.0, 12.0, 13.0]], [[10.0, 10.5]])
    assert found.low < found.high


def test_a_ratio_of_nothing() -> None:
    for over, under in (([], [[1.0]]), ([[1.0]], [[]])):
        with pytest.raises(ValueError, match="blocks"):
            bench.ratio(over, under)
    with pytest.raises(ValueError, match="paired"):
        bench.ratio([[1.0], [2.0]], [[1.0]], paired=True)


def test_equal_builds_are_equal_and_a_slower_one_is_slower() -> None:
    same = bench.compare(made(seed=1), made(seed=2))
    assert bench.gate(same, 1.1).startswith("good: the quick calls (p5) take ")
    assert set(same.ratios) == {"end_to_end", "decoder"}  # audio took no time at all
    slower = bench.compare(made(seed=1), made(1.3, seed=2))
    assert slower.ratios["decoder"].value == pytest.approx(1.3, abs=0.03)
    with pytest.raises(Slower, match="is the limit"):
        bench.gate(slower, 1.1)
    assert "not slower for sure" in bench.gate(bench.compare(made(noise=0.3), made(1.1, seed=5, noise=0.3)), 1.1)


@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_noise_is_not_judged(sides: tuple[bool, bool]) -> None:
    found = bench.compare(made(dirty=sides[0]), made(2.0, dirty=sides[1]))
    assert not found.judged
    assert found.ratios["end_to_end"].value == pytest.approx(2, abs=0.1)
    with pytest.raises(NotJudged, match="patience"):
        bench.gate(found, 1.1)
    assert any("is dirty: other programs" in line for line in found.warnings)


def test_only_undisturbed_calls_are_compared() -> None:
    """Blocks in which the slow calls are those that had to wait."""
    report = made(dirty=True)
    for one in report["blocks"]:
        work = one["works"]["end_to_end"]
        work["waited_ms"] = [0.0, 20.0] * 5
        work["raw_ms"]["end_to_end"][1::2] = [60.0] * 5
    found = bench.compare(made(), report)
    assert found.judged
    assert found.ratios["end_to_end"].value == pytest.approx(1, abs=0.05)


def test_slow_seconds_of_the_host_are_not_the_builds() -> None:
    """Nothing else runs, and for some blocks everything takes a third longer: quick calls are left, so no alarm."""
    mixed = made(1.35, seed=3)
    mixed["blocks"][:3] = made(seed=4)["blocks"][:3]
    found = bench.compare(made(), mixed)
    assert found.ratios["end_to_end"].value == pytest.approx(1.34, abs=0.05)
    assert found.quick.value == pytest.approx(1, abs=0.03)
    assert "slower for sure" in bench.gate(found, 1.1) or "good" in bench.gate(found, 1.1)
    doubtful = bench.doubt(made(), 1.1)
    assert not doubtful([Block.from_json(one) for one in mixed["blocks"]])
    assert doubtful([Block.from_json(one) for one in mixed["blocks"][3:]])
    assert not doubtful([])


def test_too_few_calls_are_not_judged() -> None:
    assert not bench.compare(made(), made(blocks=2)).judged


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        *(("settings", "steps", 8), ("settings", "threads", 1), ("settings", "device", "cuda")),
        *(("settings", "precision", "int8"), ("settings", "prepared", True), ("bundle", "sha256", "cd")),
    ],
)
def test_other_things_are_compared_only_when_asked_for(key: str, name: str, value: object) -> None:
    other = made()
    other[key][name] = value
    with pytest.raises(InvalidArgument, match="--anyway"):
        bench.compare(made(), other)
    assert any(str(value) in line for line in bench.compare(made(), other, anyway=True).warnings)


def test_other_machines_and_versions_are_told() -> None:
    other = made()
    other["machine"]["id"], other["versions"] = "abacus", {"numpy": "3.0"}
    told = bench.comparison_text(bench.compare(made(), other))
    assert "different machines" in told
    assert "numpy 2.0 → 3.0" in told


def test_the_limit_is_a_ratio() -> None:
    for limit in (0.5, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument):
            bench.gate(bench.compare(made(), made()), limit)


def damaged(**changes: Any) -> Any:
    return {**made(), **changes}


def without(*path: Any) -> Any:
    report = copy.deepcopy(made())
    inner = report
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return report


BAD = {
    "empty": "",
    "no JSON": "{",
    "deep": "[" * 100_000,
    "a list": "[]",
    "foreign": '{"kind": "s2f-gpu", "schema_version": 1}',
    "older": damaged(schema_version=bench.SCHEMA_VERSION - 1),
    "newer": damaged(schema_version=bench.SCHEMA_VERSION + 1),
    "no blocks": damaged(blocks=[]),
    "blocks of nothing": damaged(blocks=[{}]),
    "blocks as text": damaged(blocks="many"),
    "no settings": without("settings"),
    "no steps": without("settings", "steps"),
    "no bundle hash": without("bundle", "sha256"),
    "no machine": damaged(machine=None),
    "no verdict": without("blocks", 0, "conditions", "dirty"),
    "no end to end": without("blocks", 0, "works", "end_to_end", "raw_ms", "end_to_end"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_reports(case: str, file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = file(made(), "good.json"), file(BAD[case], "bad.json")
    for pair in ((good, bad), (bad, good)):
        assert main(["bench", "--compare", *map(str, pair)]) == CODES["InvalidArgument"]
        out, err = capsys.readouterr()
        assert out == ""
        assert str(bad) in err
        assert err.count("\n") == 1
    assert main(["bench", "--baseline", str(bad)]) == CODES["InvalidArgument"]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), None, "1", True, [1.0]])
def test_values_that_are_no_times(value: object, file: Any) -> None:
    report = made()
    report["blocks"][0]["works"]["end_to_end"]["raw_ms"]["decoder"][3] = value
    with pytest.raises(InvalidArgument, match="damaged"):
        bench.read_report(file(report))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_as_a_block_is_refused_in_one_way(value: Any) -> None:
    with pytest.raises((KeyError, TypeError, AttributeError, ValueError)):
        Block.from_json(value)


def test_the_committed_reports_are_compared_where_they_agree() -> None:
    root = Path(__file__).parent.parent / "benchmarks"
    (base,), demo = (root / "baselines").glob("*.json"), root / "results" / "demo-cpu-steps4.json"
    assert bench.compare(bench.read_report(base), bench.read_report(demo)).judged
    openvino = bench.read_report(root / "results" / "demo-openvino-steps4.json")
    with pytest.raises(InvalidArgument, match="device cpu and openvino"):
        bench.compare(bench.read_report(base), openvino)


def test_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == CODES["InvalidArgument"]
    assert "cannot be read" in capsys.readouterr().err


def test_exit_statuses(file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one, same, slow = file(made(), "a.json"), file(made(seed=1), "b.json"), file(made(1.3), "c.json")
    dirty = file(made(1.3, dirty=True), "d.json")
    for second, status in ((same, 0), (slow, CODES["Slower"]), (dirty, CODES["NotJudged"])):
        assert main(["bench", "--compare", str(one), str(second), "--max-ratio", "1.1"]) == status
        assert "| end to end | " in capsys.readouterr().out
        assert main(["bench", "--compare", str(one), str(second)]) == 0
    assert (CODES["Slower"], CODES["NotJudged"]) == (90, 91)


def test_a_gate_needs_something_to_hold_the_run_against(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--max-ratio", "1.1"]) == CODES["InvalidArgument"]
    assert "--baseline" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--baseline", "a", "--compare", "a", "b"])


def test_the_baseline_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / f"{bench.machine_id()}.json"
    assert bench.baseline(own) == own
    with pytest.raises(InvalidArgument, match="no baseline for this machine"):
        bench.baseline(tmp_path)
    assert main(["bench", "--baseline", str(tmp_path), "--max-ratio", "1.1"]) == CODES["InvalidArgument"]
    assert f"--json {own}" in capsys.readouterr().err
    own.write_text(json.dumps(made()))
    assert bench.baseline(tmp_path) == own


@pytest.mark.parametrize(("slow", "status"), [(1.0, 0), (1.3, 90)])
def test_a_run_is_held_against_its_baseline(
    slow: float, status: int, file: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = file(made(), "base.json"), file("", "out.json")
    monkeypatch.setattr(bench, "measure", lambda *_, **__: made(slow, seed=1))
    monkeypatch.setattr(bench, "to_text", lambda _: "the report\n")
    command = ["bench", "--baseline", str(base), "--max-ratio", "1.1", "--json", str(out)]
    assert main(command) == status
    assert capsys.readouterr().out.startswith("the report\n\n| ms, p50 |")
    assert bench.read_report(out) == made(slow, seed=1)
