"""The bench: complete, honest figures; not how fast they are."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import write_tiny_bundle

from runtime import bench
from runtime.bench import Block, Timed, cold, core
from runtime.bench import report as reporting
from runtime.errors import DeviceUnavailable, InvalidArgument, StepsUnavailable

HOST, KERNEL, BUILD = "somebodys-host", "5.4.3-kernel-of-somebody", "#1 SMP build-of-somebody"
CLEAN = {"seconds": 1.0, "own": 0.9, "others": 0.0, "steal": 0.0, "stalled": 0.0, "throttled": None, "dirty": []}
DIRTY = {**CLEAN, "others": 0.5, "dirty": ["other programs took 50% of the CPU time, 5% is the limit"]}


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
        patch.setattr(reporting, "IDLE_SECONDS", 0.01)
        return bench.measure(bundle, device="cpu", threads=1, steps=2, runs=12, warmup=2, cold=False)


def values_of(report: dict[str, Any]) -> dict[str, list[float]]:
    found = bench.values(Block.from_json(one) for one in report["blocks"])
    return {name: bench.flat(blocks) for name, blocks in found.items()}


def test_every_stage_is_there_with_its_raw_values(report: dict[str, Any]) -> None:
    graphs = {"encoder", "step_1", "step_2", "step", "decoder", "graphs"}
    stages = {"audio", *graphs, "end_to_end", "file_to_pixels", "audio_of_file", "encode_png"}
    raw = values_of(report)
    assert set(report["stages_ms"]) == set(raw) == stages
    assert set(report["once_ms"]) == {"read_bundle", "open_sessions", "first_call", "first_portrait"}
    assert set(report["raw_once_ms"]) == set(report["once_ms"])
    assert {name: len(values) for name, values in raw.items()} == {**dict.fromkeys(stages, 12), "step": 24}
    assert report["stages_ms"]["decoder"] == pytest.approx(bench.statistics(raw["decoder"]), abs=2e-4)


def test_the_conditions_are_stated(report: dict[str, Any]) -> None:
    settings = {"device": "cpu", "threads": 1, "steps": 2, "batch": 1, "runs": 12, "warmup": 2}
    settings.update(precision="fp32", prepared=False)
    assert report["settings"] == {**settings, "patience": 0.0}
    assert report["schema_version"] == bench.SCHEMA_VERSION == 3
    assert report["bundle"]["name"] == "tiny"
    assert len(report["bundle"]["sha256"]) == 64
    assert report["machine"]["cpu"]
    assert report["machine"]["id"] == bench.machine_id()
    assert report["versions"]["onnxruntime"] or report["versions"]["onnxruntime-gpu"]
    assert report["process"]["peak_rss_mib"] > 10
    assert set(report["conditions"]) == {"once", "calls"}
    assert set(report["state"]) == {"before", "after"}
    assert report["process"]["vram_mib"] is None


def test_parts_do_not_exceed_the_whole(report: dict[str, Any]) -> None:
    raw = values_of(report)
    parts = np.sum([raw[name] for name in ("audio", "encoder", "step_1", "step_2", "decoder")], axis=0)
    assert (parts <= np.array(raw["end_to_end"]) + 0.001).all()


def test_the_first_portrait_is_loading_and_the_first_call(report: dict[str, Any]) -> None:
    once = {name: values[0] for name, values in report["raw_once_ms"].items()}
    assert once["first_portrait"] == pytest.approx(sum(once.values()) - once["first_portrait"], abs=0.001)


def test_the_report_is_plain_json_and_comes_back(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(bench.to_json(report))
    assert bench.read_report(path) == report
    assert [Block.from_json(one).to_json() for one in report["blocks"]] == report["blocks"]
    assert max(map(len, path.read_text().splitlines())) < 2000


def test_the_report_does_not_tell_whose_machine_it_is(report: dict[str, Any], bundle: Path) -> None:
    assert platform.node() != HOST  # the fixture's names are gone again
    text = json.dumps(report, ensure_ascii=False) + bench.to_text(report) + bench.to_markdown(report)
    for name in (HOST, KERNEL, BUILD, "somebody"):
        assert name not in text
    for place in (bundle.parent, Path.home(), Path.cwd(), Path(bench.__file__).parent):
        assert len(str(place)) < 2 or str(place) not in text
    assert re.search(r"""(?:^|[\s"'=(])(?:/\w|~/|[A-Za-z]:\\)""", text) is None


def test_the_text_reads_well(report: dict[str, Any]) -> None:
    lines = bench.to_text(report).splitlines()
    head = next(line for line in lines if line.startswith("ms, each call"))
    assert head.split()[3:] == ["p50", "p90", "p95", "p99", "mean", "min", "max", "n"]
    assert any(line.startswith("end to end ") and len(line) == len(head) for line in lines)
    assert any("cpu in fp32, 1 thread, graphs made ready at load" in line for line in lines)
    assert any("peak rss MiB " in line for line in lines)
    assert any(line.startswith("calls ") for line in lines[-3:])


def test_the_markdown_has_whole_tables(report: dict[str, Any]) -> None:
    lines = bench.to_markdown(report).splitlines()
    assert lines[0] == "| ms, each call | p50 | p90 | p95 | p99 | mean | min | max | n |"
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert any(line.startswith("| end to end | ") for line in lines)


@pytest.mark.parametrize("conditions", [CLEAN, DIRTY, {**CLEAN, "others": None, "steal": None, "dirty": None}])
def test_the_text_says_what_to_think_of_it(report: dict[str, Any], conditions: dict[str, Any]) -> None:
    changed = {**report, "conditions": {"once": CLEAN, "calls": conditions}}
    told = bench.to_text(changed).splitlines()[-3]
    word = {None: "not known", 0: "clean", 1: "DIRTY: other programs took 50% of the CPU time"}
    assert word[None if conditions["dirty"] is None else len(conditions["dirty"])] in told


def test_statistics() -> None:
    found = bench.statistics([float(v) for v in range(1, 102)])
    points = {"p50": 51, "p90": 91, "p95": 96, "p99": 100}
    assert found == {**points, "mean": 51, "min": 1, "max": 101, "count": 101}


def test_a_block_keeps_every_call_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def work(number: int) -> dict[str, float]:
        seen.append(number)
        return {"part": number / 10}

    found = bench.block({"whole": work, "other": lambda _: None}, 3, first=5)
    assert seen == [5, 6, 7]
    assert found.works["whole"].raw_ms["part"] == [0.5, 0.6, 0.7]
    assert len(found.works["whole"].raw_ms["whole"]) == len(found.works["other"].raw_ms["other"]) == 3
    monkeypatch.setattr(core, "waited_ms", lambda: None)
    assert bench.block({"whole": work}, 2).works["whole"].waited_ms is None


def one_block(conditions: dict[str, Any], waited: list[float] | None) -> Block:
    raw = {"w": [10.0, 20.0, 30.0], "step_1": [1.0, 2.0, 3.0], "step_2": [4.0, 5.0, 6.0]}
    return Block({"w": Timed(raw, waited)}, conditions)


@pytest.mark.parametrize(
    ("conditions", "waited", "quiet"),
    [
        (CLEAN, [0.0, 5.0, 0.2], [True, False, True]),
        (CLEAN, [5.0, 5.0, 9.0], [True, True, True]),  # more threads than cores wait for each other
        (DIRTY, [0.0, 0.4, 0.7], [True, True, False]),
        (DIRTY, None, [False, False, False]),
        ({**DIRTY, "steal": 0.1}, [0.0, 0.0, 0.0], [False, False, False]),
        ({**CLEAN, "dirty": None, "steal": None}, None, [True, True, True]),
    ],
)
def test_which_calls_count_as_undisturbed(
    conditions: dict[str, Any], waited: list[float] | None, quiet: list[bool]
) -> None:
    block = one_block(conditions, waited)
    assert block.quiet("w") == quiet
    kept = bench.values([block, block], quiet=True)
    expected = [value for value, there in zip([10.0, 20.0, 30.0], quiet, strict=True) if there]
    assert kept.get("w", []) == ([expected, expected] if expected else [])
    assert len(bench.flat(kept.get("step", []))) == 4 * len(expected)


@pytest.fixture
def dirty_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A machine on which only the calls of every third block are undisturbed; the blocks' sizes."""
    sizes: list[int] = []

    def fake(works: Any, runs: int, first: int) -> Block:
        sizes.append(runs)
        conditions = CLEAN if len(sizes) % 3 == 0 else DIRTY
        return Block({"w": Timed({"w": [1.0] * runs}, None)}, conditions)

    monkeypatch.setattr(reporting, "block", fake)
    monkeypatch.setattr(reporting, "wait_for_quiet", lambda _: None)
    return sizes


def test_without_patience_there_are_as_many_calls_as_asked_for(dirty_machine: list[int]) -> None:
    reporting.collect({"w": lambda _: None}, 10, 4)
    assert dirty_machine == [4, 4, 2]


def test_with_patience_there_are_as_many_undisturbed_calls(dirty_machine: list[int]) -> None:
    blocks = reporting.collect({"w": lambda _: None}, 10, 4, patience=60.0)
    assert len(bench.flat(bench.values(blocks, quiet=True)["w"])) >= 10
    assert len(blocks) > 3


def test_in_doubt_there_are_more_calls_at_other_times(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(reporting, "block", lambda *_: Block({"w": Timed({"w": [1.0]}, None)}, CLEAN))
    monkeypatch.setattr(reporting, "wait_for_quiet", lambda _: None)
    monkeypatch.setattr(reporting.time, "sleep", slept.append)
    blocks = reporting.collect({"w": lambda _: None}, 2, 1, patience=60.0, doubt=lambda blocks: len(blocks) < 5)
    assert len(blocks) == 5
    assert len(slept) == 3
    assert len(reporting.collect({"w": lambda _: None}, 2, 1, doubt=lambda _: True)) == 2


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "block", lambda *_: Block({"w": Timed({"w": [1.0]}, None)}, DIRTY))
    assert len(reporting.collect({"w": lambda _: None}, 3, 1, patience=1e-9)) == 3


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
    monkeypatch.setattr(cold, "IMPORTS", 1)
    monkeypatch.setattr(cold, "COLD_STARTS", 1)
    monkeypatch.setattr(reporting, "IDLE_SECONDS", 0.01)
    report = bench.measure(bundle, device="cpu", threads=1, steps=1, runs=1, warmup=0)
    assert {"import_runtime", "import_all", "process_to_png"} <= set(report["raw_once_ms"])
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("device", "precision"), [("auto", "auto"), ("cpu", "fp32")])
def test_a_cold_process_is_asked_for_what_the_user_asked_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, device: str, precision: str
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(cold, "_python", lambda *arguments: started.append(arguments) or "1")
    monkeypatch.setattr(reporting, "IDLE_SECONDS", 0.01)
    bench.measure(bundle, device=device, precision=precision, threads=1, steps=1, runs=1, warmup=0)
    drawing = [one for one in started if "generate" in one]
    assert len(drawing) == cold.COLD_STARTS
    for one in drawing:
        assert (one[one.index("--device") + 1], one[one.index("--precision") + 1]) == (device, precision)


def test_bad_options(bundle: Path) -> None:
    for runs, warmup in ((0, 0), (-1, 0), (True, 0), (1, -1)):
        with pytest.raises(InvalidArgument):
            bench.measure(bundle, runs=runs, warmup=warmup)
    for patience in (-1, True, "1", float("nan"), 1e6):
        with pytest.raises(InvalidArgument, match="patience"):
            bench.measure(bundle, patience=patience)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="threads"):
        bench.measure(bundle, threads=0)
    with pytest.raises(StepsUnavailable):
        bench.measure(bundle, steps=3, cold=False)
    with pytest.raises(DeviceUnavailable):
        bench.measure(bundle, device="abacus")
