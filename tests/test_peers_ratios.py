"""benchmarks/peers: what rounds amount to (ratios, intervals, goals, verdicts) and how the report says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import ratios, report

FIXTURE = Path(__file__).parent / "data" / "peers.json"


def test_report_of_the_fixture() -> None:
    found = report.read(FIXTURE)
    text = report.markdown(found)
    first, second = (report.summarise(one) for one in found["contests"])
    assert first["base"] == "ours cpu fp32"
    assert first["arms"]["torch eager fp32"]["times"]["value"] == pytest.approx(4.0, rel=0.05)
    assert second["arms"]["torch eager fp32"]["dirty"] == 2  # no three clean ones, so all are taken
    assert "| **ours cpu fp32** | fp32 | 10.0 |" in text
    assert "random weights" in text
    assert "| openvino fp32 by hand |  | — |" in text
    verdicts = {(goal["ours"], goal["peer"]): goal["verdict"] for goal in report.goals(found["contests"][0])}
    assert verdicts == {
        ("ours cpu fp32", "diffusers 25 steps"): "met",
        ("ours cpu fp32", "torch eager fp32"): "met",
        ("ours cpu fp32", "torch eager bf16"): "not measured",
        ("ours cpu fp32", "onnxruntime naive"): "missed",
        ("ours cpu fp32", "openvino fp32 by hand"): "not measured",
        ("ours cpu fp32", "openvino bf16 by hand"): "not measured",
        ("ours cpu fp32", "openvino int8 by hand"): "not measured",
        ("ours cpu int8", "ours cpu fp32"): "not measured",
        ("ours openvino int8", "ours openvino fp32"): "not measured",
        ("ours openvino int8", "ours openvino bf16"): "not measured",
    }
    busy = {goal["peer"]: goal["verdict"] for goal in report.goals(found["contests"][1])}
    assert busy["torch eager fp32"] == "not judged: the machine was busy"
    assert "| **missed** |" in text
    assert "- **missed**: ours cpu fp32 against onnxruntime naive" in text
    assert text.count("2025-01-01") == 2 * 2  # each contest says when it was


def times_of(value: float, low: float, high: float, rounds: int = 5, dirty: int = 0) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "rounds": rounds, "dirty": dirty}


@pytest.mark.parametrize(
    ("found", "wanted", "said"),
    [
        (times_of(1.0, 0.97, 1.02), 1, "met"),
        (times_of(1.0, 0.8, 1.3), 1, "not certain"),
        (times_of(0.85, 0.8, 0.9), 1, "missed"),
        (times_of(3.1, 3.0, 3.2), 3, "met"),
        (times_of(3.1, 2.9, 3.2), 3, "not certain"),
        (times_of(2.95, 2.9, 3.1), 3, "missed, within the interval"),
        (times_of(2.0, 1.9, 2.1), 3, "missed"),
        (times_of(9.0, 8.9, 9.1, dirty=1), 3, "not judged: the machine was busy"),
        (times_of(9.0, 8.9, 9.1, rounds=2), 3, "not judged: too few rounds"),
        (None, 3, "not measured"),
    ],
)
def test_a_goal_is_met_by_the_whole_interval_and_missed_by_the_ratio(found: Any, wanted: float, said: str) -> None:
    assert ratios.verdict(found, wanted) == said


def blocks(*told: tuple[int, float, bool], precision: str = "fp32") -> dict[str, Any]:
    """An arm by (round, milliseconds, whether it was disturbed)."""
    rounds = [{"round": n, "ms": [ms] * 3, "conditions": {"dirty": ["busy"] if dirty else []}} for n, ms, dirty in told]
    return {"precision": precision, "rounds": rounds}


CALM = [(number, 10.0, False) for number in range(4)]


def test_a_block_is_paired_once_however_often_the_other_was_taken_again() -> None:
    """Two rounds at 2 ×, and a disturbed one of three turns at 4 ×: each turn as a pair of its own would say 4 ×."""
    noisy = [(0, 20.0, False), *[(1, 40.0, True)] * 3, (2, 20.0, False)]
    found = ratios.times(blocks(*CALM), blocks(*noisy))
    assert found is not None
    assert (found["value"], found["rounds"], found["dirty"]) == (2.0, 3, 1)


def test_clean_blocks_are_paired_within_their_round_alone() -> None:
    """Ours was disturbed in round 1 and taken again; of round 2 there is no clean turn; round 3 is the peer's alone."""
    ours = blocks((0, 10, False), (1, 99, True), (1, 10, False), (2, 99, True), (4, 10, False))
    peer = blocks((0, 20, False), (1, 20, False), (2, 20, False), (3, 20, False), (4, 30, False))
    both = ratios.paired(ours["rounds"], peer["rounds"])
    assert [(a["round"], b["round"], a["ms"][0], b["ms"][0]) for a, b in both] == [
        *((0, 0, 10, 20), (1, 1, 10, 20)),
        (4, 4, 10, 30),
    ]
    found = ratios.times(ours, peer)
    assert found is not None
    assert (found["value"], found["dirty"]) == (2.0, 0)
    assert ratios.times(ours, blocks((7, 1.0, False))) is None


def test_ratios_at_equal_precision_and_of_the_fastest() -> None:
    """Ours in float32 takes 25 and 20 ms, in bfloat16 10, in eight bits 12 and 8; eight bits stand beside eight."""

    def arm(ms: float, precision: str) -> dict[str, Any]:
        return blocks(*((number, ms, False) for number in range(4)), precision=precision)

    arms = {
        "ours cpu fp32": arm(25, "fp32"),
        "ours cpu int8": arm(12, "int8"),
        "ours openvino fp32": arm(20, "fp32"),
        "ours openvino bf16": arm(10, "bf16"),
        "ours openvino int8": arm(8, "int8"),
        "openvino fp32 by hand": arm(20, "fp32"),
        "openvino bf16 by hand": arm(10, "bf16"),
        "openvino int8 by hand": arm(8, "int8"),
        "onnxruntime naive": arm(50, "fp32"),
    }
    contest = {"threads": 2, "arms": arms}
    summary = ratios.summarise(contest)
    assert summary["base"] == "ours openvino int8"
    naive = summary["arms"]["onnxruntime naive"]
    assert (naive["times"]["value"], naive["equal_to"], naive["equal"]["value"]) == (6.25, "ours openvino fp32", 2.5)
    found = {(goal["ours"], goal["peer"]): goal for goal in ratios.goals(contest) if goal["times"]}
    assert {pair: goal["compared"] for pair, goal in found.items()} == {
        ("ours openvino int8", "onnxruntime naive"): ["fastest of ours, int8 against fp32"],
        ("ours openvino fp32", "onnxruntime naive"): ["equal precision, fp32"],
        ("ours cpu fp32", "onnxruntime naive"): ["equal precision, fp32", "same engine"],
        ("ours openvino int8", "openvino fp32 by hand"): ["fastest of ours, int8 against fp32"],
        ("ours openvino fp32", "openvino fp32 by hand"): ["equal precision, fp32", "same engine"],
        ("ours openvino int8", "openvino bf16 by hand"): ["fastest of ours, int8 against bf16"],
        ("ours openvino bf16", "openvino bf16 by hand"): ["equal precision, bf16", "same engine"],
        ("ours openvino int8", "openvino int8 by hand"): ["fastest of ours", "equal precision, int8", "same engine"],
        ("ours cpu int8", "ours cpu fp32"): ["both ours, int8 against fp32"],
        ("ours openvino int8", "ours openvino fp32"): ["both ours, int8 against fp32"],
        ("ours openvino int8", "ours openvino bf16"): ["both ours, int8 against bf16"],
    }
    own = [goal for (_, peer), goal in found.items() if peer.startswith(ratios.OURS)]
    assert [(goal["wanted"], goal["times"]["value"], goal["verdict"]) for goal in own] == [
        (1.5, pytest.approx(25 / 12, rel=1e-3), "met"),
        (1.3, 2.5, "met"),
        (None, 1.25, "told, not judged"),
    ]
    assert ratios.summarise({"threads": 2, "arms": {"onnxruntime naive": arms["onnxruntime naive"]}}) == {}


def test_what_is_wanted_is_what_is_judged() -> None:
    assert report.wanted_in_words(1.0) == "not behind: ≥ 0.95 ×"
    assert report.wanted_in_words(1.5) == "≥ 1.5 ×"
    assert report.wanted_in_words(None) == ""
