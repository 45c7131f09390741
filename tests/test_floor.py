"""benchmarks/floor: counts and floors against numbers worked out by hand, profiles, the command. No time is judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.floor import __main__ as command
from benchmarks.floor import peaks, stages
from benchmarks.peers.task import Task
from export.cost import matrix_by_operator
from runtime.errors import BundleNotFound
from tests.test_export_cost import graph, node, zeros
from tests.tiny_bundle import SHORTCUT, write_tiny_bundle

FOUND = {"gflops": {"f32": 100.0, "bf16": 200.0}, "copies_gb_s": {"cache": 10.0, "memory": 1.0}}
COST = {
    "flops": 300_000_000,
    "by_kind": {"convolution": 200_000_000, "matrix product": 100_000_000},
    "weight_bytes": 6_000_000,
    "activation_bytes": 4_000_000,
}


def test_matrix_work_by_operator() -> None:
    """A 3×3 convolution of 3 channels to 16 on 8×8, then 1024 numbers into 10."""
    nodes = [
        node("Conv", "x w", "y", pads=[1, 1, 1, 1]),
        node("Relu", "y", "z"),
        node("Flatten", "z", "f"),
        node("Gemm", "f g", "h"),
    ]
    weights = {"w": zeros(16, 3, 3, 3), "g": zeros(1024, 10)}
    found = matrix_by_operator(graph(nodes, {"x": [1, 3, 8, 8]}, {"h": [1, 10]}, weights))
    assert found == {"Conv": 2 * 16 * 64 * 27, "Gemm": 2 * 1024 * 10}
    assert stages.by_kind(found) == {"convolution": 55_296, "matrix product": 20_480}


def test_operators_of_engines_are_of_a_kind() -> None:
    found = stages.by_kind({"FusedConv": 1.0, "Conv": 2.0, "FullyConnected": 4.0, "Reorder": 8.0})
    assert found == {"convolution": 3.0, "matrix product": 4.0, "other": 8.0}


def test_floor_is_the_larger_of_arithmetic_and_traffic() -> None:
    """0.3 GFLOP at 100 GFLOP/s are 3 ms, 10 MB at 10 GB/s are 1 ms; bfloat16 halves the bytes."""
    floor = command.floor_ms(COST, FOUND, "f32")
    assert floor is not None
    assert (floor["compute"], floor["traffic"], floor["floor"]) == pytest.approx((3.0, 1.0, 3.0))
    assert floor["by_kind"] == pytest.approx({"convolution": 2.0, "matrix product": 1.0})
    low = command.floor_ms({**COST, "flops": 0}, FOUND, "bf16")
    assert low is not None
    assert (low["compute"], low["floor"]) == pytest.approx((0.0, 0.5))
    assert command.floor_ms(COST, FOUND, "int8") is None


def test_convolutions_over_their_floor() -> None:
    engine = {"operators_ms": {"encoder": {"FusedConv": 1.0, "Conv": 2.0, "Add": 9.0}, "decoder": {"Add": 1.0}}}
    floor = command.floor_ms(COST, FOUND, "f32")
    assert floor is not None
    assert command.convolution_times(engine, "encoder", floor) == pytest.approx(1.5)
    assert command.convolution_times(engine, "decoder", floor) is None


def test_a_profile_is_the_sum_of_the_nodes_medians() -> None:
    def event(name: str, operator: str, micro: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": micro, "args": {"op_name": operator}}

    events = [
        *(event("a", "Conv", micro) for micro in (1000, 2000, 90_000)),
        *(event("b", "Conv", micro) for micro in (3000, 3000, 3000)),
        *(event("c", "Add", micro) for micro in (500, 500, 500)),
        {"cat": "Session", "name": "model_run", "dur": 10**6, "args": {}},
        {"cat": "Node", "name": "a_fence_before", "dur": 10**6, "args": {"op_name": "Conv"}},
    ]
    assert stages.operators_of_trace(events) == {"Conv": 5.0, "Add": 0.5}


def test_chains_of_products_stay_in_range() -> None:
    from onnx.reference import ReferenceEvaluator

    data = peaks.chain(32, 8)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    x = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)
    (y,) = ReferenceEvaluator(onnx.load_from_string(data)).run(None, {"x0": x})
    assert 0.2 < y.std() < 5
    assert matrix_by_operator(data) == {"MatMul": 8 * 2 * 32**3}


def test_peaks_say_where_they_were_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "COPIES", {"cache": 1 << 10, "memory": 1 << 12})
    found = peaks.peaks(1, sizes=(16, 32), seconds=0.0)
    assert found["gflops"]["f32"] > 0
    engine, size = found["best"]["f32"].split(", ")
    assert found["products"]["f32"][engine][size] == found["gflops"]["f32"]
    assert found["copies_gb_s"].keys() == {"cache", "memory"}


def test_the_whole_command_on_a_tiny_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "peaks", lambda threads: peaks.peaks(threads, sizes=(16,), seconds=0.0))
    monkeypatch.setattr(peaks, "COPIES", {"cache": 1 << 10, "memory": 1 << 12})
    for name, value in (("MOST", 0.0), ("WARM", 0.0)):
        monkeypatch.setattr(stages, name, value)
    bundle, out = write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT), tmp_path / "floor.json"
    assert command.main(["-o", str(out), "--bundle", str(bundle), "--threads", "1"]) == 0
    found = json.loads(out.read_bytes())
    assert found["runs"][0]["engines"]["ours cpu"]["ms"].keys() == {"encoder", "unet", "decoder"}
    assert all(cost["flops"] > 0 for cost in found["costs"].values())
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out == command.markdown(found)
    assert "| ours cpu | decoder |" in text
    assert command.main(["--bundle", str(tmp_path / "nothing")]) == BundleNotFound.code


def test_stages_are_given_what_they_take(tmp_path: Path) -> None:
    given = stages.inputs(Task(write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT), "", 2, 1))
    assert given["unet"].keys() == {"latent", "condition", "step", "prior_weight"}
    assert given["unet"]["step"].tolist() == [1]
