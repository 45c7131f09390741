"""benchmarks/floor: counts and floors against numbers worked out by hand, profiles, the command. No time is judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.floor import __main__ as command
from benchmarks.floor import peaks, report, stages
from benchmarks.peers.task import Task
from export.cost import matrix_by_operator
from runtime.backends import Settings
from runtime.backends.ort import open_session
from runtime.bundle import read_bundle
from runtime.errors import BundleNotFound, InvalidArgument
from tests.test_export_cost import graph, node, zeros
from tests.tiny_bundle import SHORTCUT, write_tiny_bundle
from tests.tiny_variant import eights

FOUND = {"gflops": {"fp32": 100.0, "bf16": 200.0}, "copies_gb_s": {"cache": 10.0, "memory": 1.0}}
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
    floor = report.floor_ms(COST, FOUND, "fp32")
    assert floor is not None
    assert (floor["compute"], floor["traffic"], floor["floor"]) == pytest.approx((3.0, 1.0, 3.0))
    assert floor["by_kind"] == pytest.approx({"convolution": 2.0, "matrix product": 1.0})
    low = report.floor_ms({**COST, "flops": 0}, FOUND, "bf16")
    assert low is not None
    assert (low["compute"], low["floor"]) == pytest.approx((0.0, 0.5))
    assert report.floor_ms(COST, FOUND, "int8") is None
    eight = report.floor_ms({**COST, "flops": 0}, {**FOUND, "gflops": {"int8": 400.0}}, "int8")
    assert eight is not None
    assert eight["floor"] == pytest.approx(0.25)


def test_convolutions_over_their_floor() -> None:
    engine = {"operators_ms": {"encoder": {"FusedConv": 1.0, "Conv": 2.0, "Add": 9.0}, "decoder": {"Add": 1.0}}}
    floor = report.floor_ms(COST, FOUND, "fp32")
    assert floor is not None
    assert report.convolution_times(engine, "encoder", floor) == pytest.approx(1.5)
    assert report.convolution_times(engine, "decoder", floor) is None


@pytest.mark.parametrize(
    ("p50", "best", "said"),
    [
        (4.7, 4.0, "within 1.6 × its floor (1.57)"),
        (4.9, 4.5, "**not within 1.6 × its floor** (1.63; its best call is, 1.50)."),
        (9.0, 6.0, "**not within 1.6 × its floor** (3.00, at best 2.00)."),
    ],
)
def test_a_verdict_is_of_the_median_and_tells_what_is_above(p50: float, best: float, said: str) -> None:
    """The floor of COST is 3 ms, of its convolutions 2 ms."""
    operators = {"Conv": 4.0, "MatMul": 3.0, "FusedConv": 1.0, "Transpose": 1.5, "Add": 0.5}
    engine = {"ms": {"unet": {"p50": p50, "best": best}}, "operators_ms": {"unet": operators}}
    floor = report.floor_ms(COST, FOUND, "fp32")
    assert floor is not None
    found = report.verdict(engine, "unet", floor)
    assert found.startswith(said)
    if p50 > 4.8:
        told = (
            "the convolutions take 5.00 (50%; their floor is 2.00), the rest 5.00 (50%): MatMul 3.00 (30%), Transpose"
        )
        assert told in found


def test_sessions_that_are_profiled_have_the_options_of_the_runtimes_own(tmp_path: Path) -> None:
    data = read_bundle(write_tiny_bundle(tmp_path / "tiny")).files["encoder"]
    session = stages.profiled_session(data, Settings("cpu", 1), tmp_path / "profile")
    profiled, own = (
        one.get_session_options() for one in (session, open_session(data, Settings("cpu", 1), "a test graph"))
    )
    assert (profiled.enable_profiling, own.enable_profiling) == (True, False)
    for name in ("intra_op_num_threads", "execution_mode", "graph_optimization_level", "use_deterministic_compute"):
        assert getattr(profiled, name) == getattr(own, name)
    entry = "session.force_spinning_stop"
    assert profiled.get_session_config_entry(entry) == own.get_session_config_entry(entry) == "1"
    assert Path(session.end_profiling()).parent == tmp_path


def test_graphs_that_are_profiled_are_compiled_as_the_runtimes_own(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from runtime.backends.openvino import compile_graph

    data, settings = (
        read_bundle(write_tiny_bundle(tmp_path / "tiny")).files["encoder"],
        Settings("openvino", 1, "fp32"),
    )
    profiled, own = stages.profiled_model(data, settings), compile_graph(data, settings, "a test graph")
    other = [
        name
        for name in own.get_property("SUPPORTED_PROPERTIES")
        if str(own.get_property(name)) != str(profiled.get_property(name)) and name != "NETWORK_NAME"
    ]
    assert other == ["PERF_COUNT"]


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


def test_chains_in_eight_bits_are_computed_in_eight_bits(tmp_path: Path) -> None:
    """ONNX Runtime fuses every product with what is quantised around it; else the peak would be of something else."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    x = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)
    exact, eight = (
        onnxruntime.InferenceSession(peaks.chain(32, 8, quantised=quantised), options).run(None, {"x0": x})[0].ravel()
        for quantised in (False, True)
    )
    assert np.corrcoef(exact, eight)[0, 1] > 0.98
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert [node.op_type for node in nodes] == ["QuantizeLinear", *["QLinearMatMul"] * 8, "DequantizeLinear"]


def test_engines_are_by_device_and_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.precision.multiplies_int8", lambda: True)
    plain, eight = (
        stages.engines(read_bundle(write(tmp_path / name)).manifest)
        for name, write in (("plain", write_tiny_bundle), ("eight", eights))
    )
    assert plain["ours cpu fp32"] == stages.Engine("cpu", "fp32")
    assert "ours cpu int8" not in plain
    task = Task(tmp_path / "eight", "", 2, 1)
    assert eight["ours cpu int8"].profile(task).keys() == {"encoder", "unet", "decoder"}


def test_peaks_say_where_they_were_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "COPIES", {"cache": 1 << 10, "memory": 1 << 12})
    found = peaks.peaks(1, sizes=(16, 32), seconds=0.0)
    assert found["gflops"]["fp32"] > 0
    engine, size = found["best"]["fp32"].split(", ")
    assert found["products"]["fp32"][engine][size] == found["gflops"]["fp32"]
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
    assert found["runs"][0]["engines"]["ours cpu fp32"]["ms"].keys() == {"encoder", "unet", "decoder"}
    assert all(cost["flops"] > 0 for cost in found["costs"].values())
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out == report.markdown(found)
    assert "| ours cpu fp32 | decoder |" in text
    out.with_suffix(".md").unlink()
    assert command.main(["--from", str(out)]) == 0
    assert out.with_suffix(".md").read_text(encoding="utf-8") == text
    found["runs"][0]["conditions"]["dirty"] = ["others took all of it"]
    assert "**not judged**: others took all of it" in report.markdown(found)
    found["runs"][0]["conditions"]["dirty"] = []
    assert report.markdown(found).count("its floor") >= 3
    assert command.main(["--bundle", str(tmp_path / "nothing")]) == BundleNotFound.code
    out.write_text("{}")
    assert command.main(["--from", str(out)]) == InvalidArgument.code


def test_stages_are_given_what_they_take(tmp_path: Path) -> None:
    given = stages.inputs(Task(write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT), "", 2, 1))
    assert given["unet"].keys() == {"latent", "condition", "step", "prior_weight"}
    assert given["unet"]["step"].tolist() == [1]
