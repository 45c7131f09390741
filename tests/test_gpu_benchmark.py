"""benchmarks/gpu without a GPU: all pieces end to end on stand-ins, and the command line. No time is judged."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_benchmark import SCRIPT, SHORT, SMALL, install, isolate, results, tiny
from tiny_bundle import DIFFUSION, SHORTCUT
from tiny_bundle import Arm as TinyArm

from benchmarks.gpu import command, engines
from benchmarks.gpu.doctor import place
from benchmarks.gpu.parts import Deadline
from benchmarks.gpu.verdicts import verdicts
from runtime.errors import InvalidArgument


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


# Everything, from end to end


@pytest.mark.parametrize("arm", [SHORTCUT, DIFFUSION], ids=["shortcut", "diffusion"])
@pytest.mark.parametrize("release", ["8.6", "10.3"])
def test_all_pieces_of_one_interpreter(
    release: str, arm: TinyArm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = install(monkeypatch, release)
    out, bundle = tmp_path / "out", tiny(tmp_path, arm)
    pieces = ["doctor", "engines", "latency", "parity", "baselines", "soak", "table"]
    status = command.main([*pieces, "-o", str(out), "--bundle", str(bundle), *SMALL])
    text = capsys.readouterr().out
    for piece in pieces:
        data = results(out, piece)
        assert (data["state"], data["error"]) == ("done", None), piece
        errors = {f"{group}/{key}": value for group, values in data["results"].items() for key, value in values.items()
                  if isinstance(value, dict) and "error" in value}  # fmt: skip
        assert not errors
    assert status == 0
    world.check()

    built = results(out, "engines")["results"]["built"]
    assert len(built) == 2 * 2 * (3 + 2)  # precisions × batch sizes × (stages and pipelines of 4 and of 1 steps)
    assert all(value["seconds"] >= 0 and value["plan_bytes"] > 0 for value in built.values())
    assert results(out, "engines")["results"]["record"]["prepared"]["record"]["pipelines"] in ([], [[1, 4]])

    arms = results(out, "latency")["results"]["portraits"]
    assert len(arms) == 2 * 2 * 2 * 2
    stages, whole = arms["stages fp16 b1 s4"], arms["pipeline fp16 b1 s4"]
    assert (stages["nodes"], whole["nodes"]) == ({"kernel": 6}, {"kernel": 1})
    assert stages["capture"] == whole["capture"] == "graph"
    assert {len(values["raw"]) for kind, values in stages["ms"].items() if kind != "graph_busy"} == {10}
    assert {len(values["raw"]) for kind, values in arms["stages fp32 b2 s1"]["ms"].items()} == {2}
    assert stages["d2h"]["bytes"] == 32 * 32 * 3
    card = results(out, "latency")["results"]["card"]
    assert set(card) == {"free_bytes", "launch", "memset", "copies"}

    compared = results(out, "parity")["results"]
    assert len(compared["graphs"]) == 2 * 2 * 3
    assert all(one["cosine"] > 0.999 for value in compared["graphs"].values() for one in value["outputs"].values())
    assert {value["pairs"] for value in compared["portraits"].values()} == {4}
    assert all(value["repeats"] and value["max_levels"] <= 2 for value in compared["portraits"].values())

    ways = results(out, "baselines")["results"]["ways"]
    assert {f"tensorrt {form} {precision}" for form in ("stages", "pipeline") for precision in ("fp16", "fp32")} == set(
        ways
    )
    assert all(len(value["p50_of_rounds"]) == 2 for value in ways.values())
    (run,) = results(out, "soak")["results"]["soak"].values()
    assert (run["portraits"], run["device"]["grown_bytes"]) == (20, 0)

    found = {line["goal"]: line["verdict"] for line in results(out, "table")["results"]["summary"]["verdicts"]}
    assert found["all engines build"] == found["one CUDA graph per portrait"] == "met"
    assert found["outputs of single engines, fp32"] == found["portraits, fp32"] == "met"
    assert found["memory of device and host does not grow"] == "not measured"  # too few
    assert found["ONNX Runtime CUDA in the same table"] == "not measured"
    assert "| all engines build |" in text
    assert "| pipeline fp16 b1 s4 |" in text
    floors = results(out, "table")["results"]["summary"]["floors"]["stages fp16 b1 s4"]
    assert card["launch"]["device_us"]["slope"] == pytest.approx(1)
    assert floors["floor_ms"]["launch"] == pytest.approx(6e-3, abs=1e-4)
    assert floors["floor_ms"]["floor"] >= floors["floor_ms"]["launch"]
    assert floors["floor_ms"]["compute"] is None  # nothing here measured a rate


def test_engines_go_on_where_they_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = install(monkeypatch)
    out, bundle = tmp_path / "out", tiny(tmp_path)
    words = ["engines", "-o", str(out), "--bundle", str(bundle), *SMALL, "--precisions", "fp16"]
    monkeypatch.setattr(engines, "expected", lambda spec, known: 1e9 if len(known) == 4 else 0.0)
    assert command.main([*words, "--seconds", "1000"]) == 1
    stopped = results(out, "engines")
    assert stopped["state"] == "stopped"
    assert "building" in stopped["error"]
    assert len(stopped["results"]["built"]) == 4  # the headline's: three stages and a pipeline
    assert "prepared" in stopped["results"]["record"]
    monkeypatch.undo()
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    world = install(monkeypatch)
    assert command.main(words) == 0
    assert world.counts.builds == 6
    assert len(results(out, "engines")["results"]["built"]) == 10
    assert all("seconds" in value for value in results(out, "engines")["results"]["built"].values())


def test_a_build_that_fails_is_told_and_the_rest_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = install(monkeypatch)
    world.unsupported = ("Conv",)  # encoder and decoder have one, the unet has none
    out, bundle = tmp_path / "out", tiny(tmp_path)
    words = ["-o", str(out), "--bundle", str(bundle), *SMALL, "--precisions", "fp32", "--batches", "1"]
    assert command.main(["engines", "latency", *words]) == 0
    built = results(out, "engines")["results"]["built"]
    assert "plan_bytes" in built["unet (batch 1, fp32)"]
    assert "Conv" in built["encoder (batch 1, fp32)"]["error"]
    assert results(out, "latency")["results"]["portraits"]["stages fp32 b1 s4"] == {
        "error": "its engines are not built"
    }
    lines = verdicts({"engines": results(out, "engines")}, [], {})
    assert lines[0]["verdict"] == "missed"


def test_without_capture_arms_are_enqueued_and_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = install(monkeypatch)
    world.refuse_capture = True
    out, bundle = tmp_path / "out", tiny(tmp_path)
    command.main(["engines", "latency", "-o", str(out), "--bundle", str(bundle), *SMALL, "--batches", "1"])
    arm = results(out, "latency")["results"]["portraits"]["stages fp16 b1 s4"]
    assert "NOT_SUPPORTED" in arm["capture"]
    assert set(arm["ms"]) == {"end_to_end", "enqueue_wall", "enqueue_device"}
    assert any("no CUDA graph" in line for line in results(out, "latency")["log"])
    found = {line["goal"]: line["verdict"] for line in verdicts({"latency": results(out, "latency")}, [], {})}
    assert found["one CUDA graph per portrait"] == "missed"


def test_pieces_without_their_packages_are_skipped(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command.main(["engines", "-o", str(out), "--bundle", str(tiny(tmp_path))]) == 1
    assert results(out, "engines")["state"] == "skipped"
    assert "tensorrt" in results(out, "engines")["error"]


def test_results_of_another_gpu_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    words = ["doctor", "-o", str(tmp_path / "out"), "--bundle", str(tiny(tmp_path))]
    assert command.main(words) == 0
    assert command.main(words) == 0
    install(monkeypatch, device_name="Another")
    assert command.main(words) == InvalidArgument.code


def test_all_as_a_process_without_a_gpu(tmp_path: Path) -> None:
    """As a script from another folder: pieces in processes of their own, all but two without what they need."""
    out, bundle = tmp_path / "out", tiny(tmp_path)
    words = ["--all", "-o", str(out), "--bundle", str(bundle), "--seconds", "500", *SHORT]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], cwd=tmp_path, capture_output=True, text=True, env=without_gpu()
    )
    states = {path.stem: results(out, path.stem)["state"] for path in out.glob("*.json")}
    assert states == {**dict.fromkeys(command.PIECES, "skipped"), "doctor": "done", "table": "done"}
    assert done.returncode == 0
    assert "| all engines build | every one asked for | – | not measured |" in done.stdout
    missing = results(out, "baselines")["results"]["interpreters"]["this"]["missing"]
    assert set(missing) == {"tensorrt", "torch", "onnxruntime"}


def without_gpu() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_place_without_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, device_name="Orin", capability=(8, 7))
    assert (place()["gpu"], place()["capability"]) == ("Orin", "8.7")
    install(monkeypatch, no_driver=True)
    assert place() == {}


# The command line


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "x"],
        ["nothing", "-o", "x"],
        ["doctor", "--all", "-o", "x"],
        ["doctor"],
        ["doctor", "-o", "x", "--batches", "0"],
        ["-o", "x", "--forms", "y"],
    ],
)
def test_words_that_make_no_sense(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = command.main(words)
    except SystemExit as exit_:
        status = int(str(exit_.code))
    assert status != 0
    assert list(tmp_path.iterdir()) == []


def test_limits_are_told_to_pieces_anew() -> None:
    words = ["--all", "-o", "x", "--seconds", "9", "--runs", "3", "--seconds=7"]
    assert command._without_limits(words) == ["-o", "x", "--runs", "3"]
    shares = list(command._shares(Deadline(1000.0)))
    assert [name for name, _ in shares] == list(command.PIECES)
    assert shares[-1][1] == pytest.approx(1000, abs=1)  # nothing was spent: what is left is the last one's


def test_the_readme_names_every_piece() -> None:
    text = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    for name in command.PIECES:
        assert f"`{name}`" in text
    assert importlib.util.find_spec("benchmarks.gpu.check") is None
