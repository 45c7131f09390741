"""The arithmetic and the files of benchmarks/gpu: percentiles, floors, verdicts, merging, and what a kill leaves."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import baselines, command, engines, floor, parity, soak
from benchmarks.gpu.parts import Deadline, NotHere, OutOfTime, Part, describe, read_part, run_part, timed, to_text
from benchmarks.gpu.plan import Arm, Counts, Job, Selection
from benchmarks.gpu.verdicts import COMPILED, verdicts
from runtime.bench import stopwatch
from runtime.engines import EngineSpec
from runtime.errors import BackendFailed, InvalidArgument

ABOUT = {"place": {"gpu": "Fake"}, "bundle": {"name": "tiny", "sha256": "0"}}


def results(out: Path, piece: str) -> dict[str, Any]:
    data = read_part(out / f"{piece}.json")
    assert data is not None
    return data


# Files of results, and what a kill leaves of them

KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from benchmarks.gpu.parts import Part, run_part

def work(part):
    for number in range(3):
        part.attempt("units", str(number), lambda: {{"ms": [number, 0.5]}})
    part.attempt("units", "long", lambda: time.sleep(600))

run_part(Part(Path({out!r}), "doctor", {about!r}), work)
"""


def test_a_killed_piece_keeps_what_it_measured(tmp_path: Path) -> None:
    about = {key: {} for key in command.ABOUT}
    text = KILLED.format(root=str(ROOT), out=str(tmp_path), about=about)
    process = subprocess.Popen([sys.executable, "-c", text], env={**os.environ, "OMP_NUM_THREADS": "1"})
    path = tmp_path / "doctor.json"
    while not (path.exists() and results(tmp_path, "doctor")["doing"] == "units: long"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert results(tmp_path, "doctor")["state"] == "running"
    assert command._ended(Job(tmp_path), "doctor") == "failed"
    data = results(tmp_path, "doctor")
    assert (data["state"], data["doing"]) == ("failed", "units: long")
    assert "killed" in data["error"]
    assert data["results"]["units"] == {str(number): {"ms": [number, 0.5]} for number in range(3)}
    assert [path.name for path in tmp_path.iterdir()] == ["doctor.json"]


def test_a_piece_that_outlasts_its_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "stub.py"
    stub.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(command, "SCRIPT", stub)
    monkeypatch.setattr(command, "GRACE", 0.0)
    monkeypatch.setattr(command, "LEAST", 0.1)
    monkeypatch.setattr(command, "PIECES", {"doctor": command.PIECES["doctor"]})
    states = command.run_all(Job(tmp_path, deadline=Deadline(1.0)), ["--all", "-o", "x", "--seconds", "1"])
    assert states == {"doctor": "failed"}


def test_units_that_fail_do_not_end_a_piece_and_results_are_merged(tmp_path: Path) -> None:
    def first(part: Part) -> None:
        assert part.attempt("a", "good", lambda: {"x": math.nan, "y": [1.5, 2]}) is not None
        assert part.attempt("a", "bad", lambda: 1 // 0) is None
        assert part.attempt("a", "quiet", lambda: None) is None
        assert part.attempt("a", "unkept", lambda: {"x": 1}, keep=False) == {"x": 1}

    def second(part: Part) -> None:
        part.put("a", "bad", {"x": 2})
        raise OutOfTime("over")

    def third(part: Part) -> None:
        raise BackendFailed("broken\nfor good")

    def fourth(part: Part) -> None:
        raise NotHere("no GPU")

    assert run_part(Part(tmp_path, "piece", ABOUT), first) == "done"
    found = results(tmp_path, "piece")["results"]["a"]
    assert found == {"good": {"x": None, "y": [1.5, 2]}, "bad": {"error": found["bad"]["error"]}}
    assert "ZeroDivisionError" in found["bad"]["error"]
    assert run_part(Part(tmp_path, "piece", ABOUT), second) == "stopped"
    assert results(tmp_path, "piece")["results"]["a"]["bad"] == {"x": 2}
    assert run_part(Part(tmp_path, "piece", ABOUT), fourth) == "skipped"
    assert run_part(Part(tmp_path, "piece", ABOUT), third) == "failed"
    data = results(tmp_path, "piece")
    assert (data["error"], data["results"]["a"]["good"]["y"]) == ("BackendFailed: broken for good", [1.5, 2])
    with pytest.raises(InvalidArgument, match="another GPU"):
        Part(tmp_path, "piece", {**ABOUT, "place": {"gpu": "Other"}})


def test_warnings_of_a_piece_are_kept_once(tmp_path: Path) -> None:
    def work(part: Part) -> None:
        for _ in range(3):
            logging.getLogger("runtime.somewhere").warning("no CUDA graph: %s", "why")

    run_part(Part(tmp_path, "piece", ABOUT), work)
    assert results(tmp_path, "piece")["log"] == ["runtime.somewhere: no CUDA graph: why"]


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "s2f-bench", "schema_version": 1}'])
def test_files_of_something_else_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "piece.json").write_text(text)
    with pytest.raises(InvalidArgument, match="--out"):
        Part(tmp_path, "piece", ABOUT)


def test_numbers_are_written_on_one_line() -> None:
    data = {
        "raw": [1.25, 2, 3e-7],
        "nested": [[1, 2], [3, 4]],
        "words": ["a 1", "b"],
        "none": [None, 1.0],
        "inf": math.inf,
    }
    text = to_text(data)
    assert json.loads(text) == {**data, "inf": None}
    assert '"raw": [1.25,2,3e-07]' in text


# Arithmetic


def test_percentiles_and_raw_values() -> None:
    found = timed([float(value) for value in range(1, 101)])
    assert (found["p50"], found["p90"], found["p99"]) == (50.5, 90.1, 99.01)
    assert (found["min"], found["max"], found["count"]) == (1, 100, 100)
    assert timed([1.23456789])["raw"] == [1.2346]
    assert describe(ValueError("a\nb")) == "ValueError: a b"


def test_the_headline_comes_first_and_nothing_twice() -> None:
    selection = Selection(batches=(1, 4, 16), steps=(4, 1, 2, 8))
    arms, engines_ = selection.arms(), selection.engines()
    assert arms[:2] == selection.headline() == [Arm("stages", "fp16", 1, 4), Arm("pipeline", "fp16", 1, 4)]
    assert len(arms) == len(set(arms)) == 2 * 2 * 3 * 4
    assert [str(spec) for spec in engines_[:4]] == [
        *(f"{stage} (batch 1, fp16)" for stage in ("encoder", "unet", "decoder")), "pipeline (batch 1, 4 steps, fp16)",
    ]  # fmt: skip
    assert len(engines_) == len(set(engines_)) == 2 * 3 * (3 + 4)
    far = [(spec.precision != "fp16") + (spec.batch != 1) + (spec.steps not in (0, 4)) for spec in engines_]
    assert far == sorted(far)


def test_time_a_build_is_expected_to_take() -> None:
    known = {
        "encoder (batch 1, fp16)": {"seconds": 10},
        "encoder (batch 4, fp16)": {"seconds": 30},
        "unet (batch 1, fp16)": {"seconds": 20},
        "decoder (batch 1, fp16)": {"error": "x"},
    }
    assert engines.expected(EngineSpec("encoder", 1, 0, "fp32"), known) == 30
    assert engines.expected(EngineSpec("pipeline", 1, 4, "fp32"), known) == 30 + 4 * 20
    assert engines.expected(EngineSpec("decoder", 1, 0, "fp16"), {}) == 0
    with pytest.raises(OutOfTime, match="a build needs about 9 s"):
        Deadline(1.0).need(9.0, "a build")
    Deadline(None).need(1e9, "anything")


def test_size_of_pipelines_by_steps() -> None:
    built = {
        "unet (batch 1, fp16)": {"plan_bytes": 7},
        "pipeline (batch 1, 1 steps, fp16)": {"plan_bytes": 100},
        "pipeline (batch 1, 4 steps, fp16)": {"plan_bytes": 131},
        "pipeline (batch 4, 1 steps, fp16)": {"error": "x"},
    }
    assert engines.growth(built) == {"batch 1, fp16": {"1": 1.0, "4": 1.31}}
    parts = {"engines": {"state": "done", "results": {"built": built, "sizes": {"pipelines": engines.growth(built)}}}}
    first, second = verdicts(parts, [], {})[:2]
    assert (first["verdict"], first["measured"]) == ("missed", "3 of 4")
    assert (second["verdict"], second["measured"]) == ("missed", 1.31)


def test_differences_of_outputs() -> None:
    wanted = np.array([3.0, 4.0], np.float32)
    same, other = parity.difference(wanted, wanted), parity.difference(np.array([3.0, 4.5], np.float32), wanted)
    assert (same["cosine"], same["relative"], same["largest"]) == (pytest.approx(1), 0, 0)
    assert (other["relative"], other["largest"]) == (pytest.approx(0.1), 0.5)
    broken = parity.difference(np.array([np.nan, 4], np.float32), wanted)
    found = parity.worst([same, broken, other])
    assert math.isnan(found["cosine"])
    assert parity.worst([same, other])["largest"] == 0.5
    assert parity.difference(np.zeros(2, np.float32), np.zeros(2, np.float32))["cosine"] == 1
    image = np.full((2, 2, 3), 100, np.uint8)
    assert parity.difference(image + np.uint8(1), image)["psnr_db"] == pytest.approx(48.13, abs=0.01)


def test_floor_is_the_largest_term_and_the_copies() -> None:
    card = floor.Card(kernel_us=1.0, graph_us=5.0, bandwidth=1000.0, rates={"float16": 500.0, "float32": 50.0})
    cost = {"matrix": {"float16": 10**9, "float32": 10**8}, "weight_bytes": 10**6, "activation_bytes": 10**6}
    terms = floor.floor_of(cost, 100, 0.02, card)
    assert terms == {"compute": 0.004, "bandwidth": 0.002, "launch": 0.105, "copies": 0.02, "floor": 0.125}
    unknown = floor.floor_of(cost, None, 0.02, floor.Card(None, None, None, {}))
    assert unknown == {"compute": None, "bandwidth": None, "launch": None, "copies": 0.02, "floor": None}


def test_cost_of_a_chain_counts_every_step() -> None:
    def counted(graph: str, batch: int, steps: int, precision: str) -> dict[str, Any]:
        return {"matrix": {"float16": 10}, "weights": {"float16": 5}, "fused_activation_bytes": 100}

    chain = floor.cost_of(Arm("stages", "fp16", 1, 4), counted)
    assert chain == {"matrix": {"float16": 60}, "weight_bytes": 15, "activation_bytes": 600}
    assert floor.cost_of(Arm("pipeline", "fp16", 1, 4), counted)["activation_bytes"] == 100


def test_growth_of_memory_is_told_from_settling() -> None:
    free = 10**10
    still = soak.memory([(0, free, 50 << 20), *((n, free - (64 << 20), 90 << 20) for n in range(1000, 10_001, 1000))])
    assert (still["device"]["grown_bytes"], still["host"]["grown_bytes"], still["grows"]) == (0, 0, False)
    leaking = soak.memory([(n, free, (50 << 20) + 1000 * n) for n in range(0, 10_001, 1000)])
    assert leaking["grows"]
    assert leaking["host"]["bytes_per_1000"] == pytest.approx(1e6, rel=0.01)
    assert soak.resident() > 10 << 20
    tenths = soak.drift(np.arange(100, dtype=float))
    assert len(tenths["p50_ms"]) == 10
    assert tenths["max_ms"] == 99


def parts_of(p50: float, p99: float, compiled: float) -> dict[str, Any]:
    ours = {"p50": p50, "p99": p99}
    ways = {
        "tensorrt pipeline fp16": {"ms": {"p50": p50}, "p50_of_rounds": [p50, p50]},
        COMPILED: {"ms": {"p50": compiled}, "p50_of_rounds": [compiled, 2 * compiled]},
        "onnxruntime cuda stages fp32": {"ms": {"p50": 9.0}, "p50_of_rounds": [9.0]},
        "onnxruntime cuda pipeline fp16": {"error": "x"},
    }
    return {
        "latency": {
            "results": {"portraits": {"pipeline fp16 b1 s4": {"capture": "graph", "ms": {"end_to_end": ours}}}}
        },
        "baselines": {"results": {"ways": ways}},
        "parity": {
            "results": {
                "graphs": {"unet (batch 1, fp16)": {"outputs": {"latent_next": {"cosine": 0.9995}}}},
                "portraits": {"pipeline fp16 b1 s4": {"psnr_db": {"min": 36.0}, "repeats": True}},
            }
        },
        "soak": {"results": {"soak": {"x": {"portraits": 10_000, "grows": False, **growth_of_nothing()}}}},
        "cuda": {"results": {"portraits": {"1 steps": {"max_levels": 3, "cuda_repeats": True}}}},
    }


def growth_of_nothing() -> dict[str, Any]:
    return {name: {"grown_bytes": 0} for name in ("device", "host")}


def test_verdicts() -> None:
    headline = Selection(steps=(4,)).headline()
    limits = {"pipeline fp16 b1 s4": {"kernels": 200, "share_of_launches": 0.35}}
    good = {line["goal"]: line for line in verdicts(parts_of(1.5, 1.9, 3.2), headline, limits)}
    speed = "PCM to pixels, batch 1, default steps, fp16"
    for goal in (
        speed,
        "its tail",
        "outputs of single engines, fp16",
        "portraits, fp16",
        "one CUDA graph per portrait",
    ):
        assert good[goal]["verdict"] == "met", goal
    assert good["faster than torch.compile max-autotune with its CUDA graphs, same run"]["measured"] == 2.133
    assert good["kernels per portrait, share of the launch floor"]["measured"] == "200 kernels, 35 %"
    assert good["memory of device and host does not grow"]["verdict"] == "met"
    assert good["ONNX Runtime CUDA in the same table"]["measured"] == "onnxruntime cuda stages fp32"
    assert good["ONNX Runtime CUDA against its CPU provider"]["verdict"] == "missed"
    assert good["outputs of single engines, fp32"]["verdict"] == good["all engines build"]["verdict"] == "not measured"
    bad = {line["goal"]: line["verdict"] for line in verdicts(parts_of(2.1, 2.9, 3.2), headline, {})}
    assert [bad[speed], bad["its tail"]] == ["missed", "missed"]
    assert bad["faster than torch.compile max-autotune with its CUDA graphs, same run"] == "missed"
    assert {line["verdict"] for line in verdicts({}, headline, {})} == {"not measured"}


def test_speedups_of_every_other_way() -> None:
    ways = parts_of(1.5, 1.9, 3.0)["baselines"]["results"]["ways"]
    assert baselines.speedups(ways, "tensorrt pipeline fp16") == {
        COMPILED: {"times": 2.0, "least": 2.0, "most": 4.0},
        "onnxruntime cuda stages fp32": {"times": 6.0, "least": 6.0, "most": 6.0},
    }
    assert baselines.speedups(ways, "absent") == {}
    assert baselines.summary([[1.0, 3.0], [5.0, 7.0]])["p50_of_rounds"] == [2.0, 6.0]


def test_a_slow_call_is_timed_less_often() -> None:
    assert len(stopwatch(lambda: None, 5)) == 5
    assert len(stopwatch(lambda: time.sleep(0.02), 1000, 0.05)) < 10
    assert len(stopwatch(lambda: None, 5, 0.0)) == 1
    assert Counts(runs=200, rounds=4).runs_of(headline=False) == 50
    assert Counts(runs=200, rounds=4).runs_of(headline=True) == 250
