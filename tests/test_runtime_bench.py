"""The bench: complete, honest figures; not how fast they are."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import write_tiny_bundle

from runtime import bench
from runtime.errors import DeviceUnavailable, InvalidArgument, StepsUnavailable

HOST, KERNEL, BUILD = "somebodys-host", "5.4.3-kernel-of-somebody", "#1 SMP build-of-somebody"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def report(bundle: Path) -> dict[str, Any]:
    """Measured on a machine whose names can be told from any other text."""
    real = platform.uname()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "uname", lambda: real._replace(node=HOST, release=KERNEL, version=BUILD))
        patch.setattr(socket, "gethostname", lambda: HOST)
        return bench.measure(bundle, device="cpu", threads=1, steps=2, runs=12, warmup=2, cold=False)


def test_every_stage_is_there_with_its_raw_values(report: dict[str, Any]) -> None:
    graphs = {"encoder", "step_1", "step_2", "step", "decoder", "graphs"}
    stages = {"audio", *graphs, "end_to_end", "encode_png", "audio_48k_wav"}
    assert set(report["stages_ms"]) == stages
    assert set(report["once_ms"]) == {"read_bundle", "open_sessions", "first_call"}
    assert len(report["raw_ms"]["end_to_end"]) == 12
    assert len(report["raw_ms"]["step"]) == 24
    assert set(report["raw_ms"]) == stages | set(report["once_ms"])


def test_the_conditions_are_stated(report: dict[str, Any]) -> None:
    settings = {"device": "cpu", "threads": 1, "steps": 2, "batch": 1, "runs": 12, "warmup": 2}
    assert report["settings"] == settings
    assert report["schema_version"] == 1
    assert report["bundle"]["name"] == "tiny"
    assert len(report["bundle"]["sha256"]) == 64
    assert report["machine"]["cpu"]
    assert report["versions"]["onnxruntime"] or report["versions"]["onnxruntime-gpu"]
    assert report["process"]["peak_rss_mb"] > 10


def test_parts_do_not_exceed_the_whole(report: dict[str, Any]) -> None:
    raw = report["raw_ms"]
    parts = np.sum([raw[name] for name in ("audio", "encoder", "step_1", "step_2", "decoder")], axis=0)
    assert (parts <= np.array(raw["end_to_end"]) + 0.001).all()


def test_the_report_is_plain_json(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_report_does_not_tell_whose_machine_it_is(report: dict[str, Any], bundle: Path) -> None:
    assert platform.node() != HOST  # the fixture's names are gone again
    text = json.dumps(report, ensure_ascii=False) + bench.to_text(report)
    for name in (HOST, KERNEL, BUILD, "somebody"):
        assert name not in text
    for place in (bundle.parent, Path.home(), Path.cwd(), Path(bench.__file__).parent):
        assert len(str(place)) < 2 or str(place) not in text
    assert re.search(r"""(?:^|[\s"'=(])(?:/\w|~/|[A-Za-z]:\\)""", text) is None


def test_the_table_reads_well(report: dict[str, Any]) -> None:
    lines = bench.to_text(report).splitlines()
    assert lines[0] == "| ms | p50 | p90 | p99 | mean | min | max | n |"
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert any(line.startswith("| end to end | ") for line in lines)
    assert any("1 threads" in line for line in lines)


def test_statistics() -> None:
    values = [float(v) for v in range(1, 102)]
    found = bench.statistics(values)
    assert found == {"p50": 51, "p90": 91, "p99": 100, "mean": 51, "min": 1, "max": 101, "count": 101}


def test_default_amount_of_runs() -> None:
    assert bench.RUNS >= 200
    assert bench.WARMUP >= 20


def test_speech_made_in_code_is_the_same_each_time() -> None:
    one, two = bench.synthetic_speech(), bench.synthetic_speech()
    np.testing.assert_array_equal(one, two)
    assert one.shape == (96000,)
    assert 0.1 < np.abs(one).max() <= 1
    assert not np.array_equal(one, bench.synthetic_speech(seed=1))


def test_fresh_processes_run_nothing_of_the_working_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even with a PYTHONPATH whose empty part stands for the working folder."""
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w').close(); raise SystemExit('trapped')\n"
    (tmp_path / "runtime").mkdir()
    for name in ("runtime/__init__.py", "runtime/__main__.py", "wave.py", "soxr.py", "numpy.py"):
        (tmp_path / name).write_text(trap)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep + os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(bench, "IMPORTS", 1)
    monkeypatch.setattr(bench, "COLD_STARTS", 1)
    monkeypatch.setattr(bench, "IDLE_SECONDS", 0.01)
    report = bench.measure(bundle, device="cpu", threads=1, steps=1, runs=1, warmup=0)
    assert {"import_runtime", "import_all", "process_to_png"} <= set(report["raw_ms"])
    assert not (tmp_path / "sprung").exists()


def test_bad_options(bundle: Path) -> None:
    for runs, warmup in ((0, 0), (-1, 0), (True, 0), (1, -1)):
        with pytest.raises(InvalidArgument):
            bench.measure(bundle, runs=runs, warmup=warmup)
    with pytest.raises(InvalidArgument, match="threads"):
        bench.measure(bundle, threads=0)
    with pytest.raises(StepsUnavailable):
        bench.measure(bundle, steps=3, cold=False)
    with pytest.raises(DeviceUnavailable):
        bench.measure(bundle, device="abacus")
