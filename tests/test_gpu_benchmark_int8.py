"""benchmarks/gpu with a bundle in eight bits, without a GPU: built, compared, measured beside fp16; refused without."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu_benchmark import SCRIPT, SHORT, install, isolate, results, tiny
from variant_factory import write_variant

from benchmarks.gpu import command
from benchmarks.gpu.plan import Selection
from benchmarks.gpu.verdicts import verdicts
from runtime.bundle import read_bundle
from runtime.engines import INT8_FAMILY
from runtime.errors import CODES

CONVOLUTIONS = {"Conv_0", "Conv_1"}
PRECISIONS = ("int8", "fp16", "fp32")
WORDS = [*SHORT, "--batches", "1", "--steps", "4", "--precisions", ",".join(PRECISIONS)]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.mark.parametrize("release", ["8.6", "10.3", "11.4"])
def test_int8_is_built_compared_and_measured_beside_fp16(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = install(monkeypatch, release)
    bundle = write_variant(read_bundle(tiny(tmp_path)), tmp_path / "eight", INT8_FAMILY, CONVOLUTIONS).path
    out, pieces = tmp_path / "out", ["engines", "latency", "parity", "baselines", "table"]
    assert command.main([*pieces, "-o", str(out), "--bundle", str(bundle), *WORDS]) == 0
    world.check()
    built = results(out, "engines")["results"]["built"]
    assert {name.rpartition(", ")[2] for name in built} == {f"{precision})" for precision in PRECISIONS}
    assert len(built) == 3 * 4
    assert results(out, "engines")["results"]["record"]["prepared"]["record"]["precision"] == "int8"
    for precision in PRECISIONS:
        assert "ms" in results(out, "latency")["results"]["portraits"][f"stages {precision} b1 s4"]
        drawn = results(out, "parity")["results"]["portraits"][f"stages {precision} b1 s4"]["psnr_db"]["min"]
        assert drawn >= (30 if precision == "int8" else 35)
    ways = results(out, "baselines")["results"]["ways"]
    assert {"tensorrt stages int8", "tensorrt pipeline int8", "tensorrt stages fp16"} <= ways.keys()
    found = {line["goal"]: line for line in results(out, "table")["results"]["summary"]["verdicts"]}
    assert (found["portraits, int8"]["verdict"], found["portraits, int8"]["limit"][:12]) == ("met", "PSNR ≥ 30 dB")
    assert "×" in found["TensorRT int8 beside fp16, same run"]["measured"]
    assert "| stages int8 b1 s4 |" in capsys.readouterr().out


def test_int8_without_the_variant_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = install(monkeypatch)
    out = tmp_path / "out"
    for which in (["engines"], ["--all"]):
        words = [*which, "-o", str(out), "--bundle", str(tiny(tmp_path / which[0].strip("-"))), *WORDS]
        assert command.main(words) == CODES["BundleInvalid"]
        said = capsys.readouterr().err
        assert INT8_FAMILY in said
        assert "s2f-calibrate" in said
    assert world.builds == []
    assert not out.exists()


def test_int8_is_measured_only_if_asked_for() -> None:
    assert Selection().precisions == ("fp16", "fp32")
    assert command.parser().parse_args(["-o", "x"]).precisions == ("fp16", "fp32")
    assert not any("int8" in line["goal"] for line in verdicts({}, [], {}))


@pytest.mark.parametrize(("least", "verdict"), [(30.0, "met"), (29.9, "missed")])
def test_portraits_in_int8_have_a_limit_of_their_own(least: float, verdict: str) -> None:
    drawn = {"stages int8 b1 s4": {"psnr_db": {"min": least}, "repeats": True}}
    found = {line["goal"]: line["verdict"] for line in verdicts({"parity": {"results": {"portraits": drawn}}}, [], {})}
    assert found["portraits, int8"] == verdict
    assert found["portraits, fp16"] == "not measured"


def test_the_commands_of_the_readme_are_understood() -> None:
    text = (SCRIPT.parent / "README.md").read_text(encoding="utf-8").partition("## Eight bits\n")[2].partition("## ")[0]
    eight = next(line for line in text.splitlines() if "eight=" in line).partition('"')[2].rstrip('"')
    lines = [line.partition("run.py ")[2].partition("  #")[0] for line in text.splitlines() if "run.py " in line]
    found = [command.parser().parse_args(line.replace("$eight", eight).split()) for line in lines if "$eight" in line]
    assert sorted(piece for one in found for piece in one.pieces) == sorted({*command.PIECES} - {"soak", "cuda"})
    assert {one.precisions for one in found} == {("int8", "fp16")}
    assert sum(one.seconds or 30 for one in found) <= 840
