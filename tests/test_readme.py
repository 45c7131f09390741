"""README.md says of speed what the committed JSON says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme
from benchmarks.peers import report as arena
from runtime.bench import read_report
from runtime.bundle import read_manifest
from runtime.pipeline import shipped_bundle


@pytest.mark.parametrize("document", readme.DOCUMENTS)
def test_a_document_is_what_its_script_makes(document: Path) -> None:
    assert readme.made(document) == document.read_text(encoding="utf-8"), "run python -m benchmarks.readme"


def test_parts_and_picture() -> None:
    document = readme.README.read_text(encoding="utf-8")
    assert readme.rewritten(document, {"headline": "1 ms"}).count("1 ms<!-- headline: end -->") == 1
    assert readme.PICTURE.read_bytes().startswith(b"\x89PNG")


def test_results_of_another_bundle_are_named_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    identity, results = read_manifest(shipped_bundle())[1], tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for name, bundle in {
        "cold": identity,
        "peers": {"sha256": identity},
        "floor": {"sha256": "0"},
        "gate": None,
    }.items():
        (results / f"{name}.json").write_text(json.dumps({"bundle": bundle}), encoding="utf-8")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    assert readme.stale() == ["benchmarks/results/floor.json", "benchmarks/results/gate.json"]
    document = tmp_path / "document.md"
    document.write_text("as it is", encoding="utf-8")
    monkeypatch.setattr(readme, "DOCUMENTS", {document: {}})
    monkeypatch.setattr(sys, "argv", ["readme", "--check"])
    assert readme.main() == 0
    assert "warning: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "document",
    [
        "nothing",
        "<!-- gate: begin -->",
        "<!-- gate: end --> <!-- gate: begin -->",
        "<!-- gate: begin --> <!-- gate: end --> <!-- gate: end -->",
    ],
)
def test_markers_that_are_not_there(document: str) -> None:
    with pytest.raises(ValueError, match="gate"):
        readme.rewritten(document, {"gate": "text"})


def test_a_part_is_put_in_as_it_is() -> None:
    begin, end = "<!-- gate: begin -->", "<!-- gate: end -->"
    made = readme.rewritten(f"a {begin} old {end} b", {"gate": r"\1 \g<0> new"})
    assert made == f"a {begin}\n\n\\1 \\g<0> new\n\n{end} b"


def test_how_fast_names_what_the_report_was_drawn_with(monkeypatch: pytest.MonkeyPatch) -> None:
    report: dict[str, Any] = read_report(readme.ROOT / readme.DEMO)
    report["settings"].update(precision="int8", threads=3, prepared=True)
    report["versions"]["onnxruntime"] = "9.9.9"
    monkeypatch.setattr(readme, "read_report", lambda _: report)
    assert "ONNX Runtime 9.9.9, int8, 3 threads, prepared, " in readme.how_fast()


def test_arms_of_one_contest_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = arena.read(readme.ROOT / readme.PEERS)
    first, second = report["contests"]
    del first["arms"]["torch eager fp32"], second["arms"]["onnxruntime naive"]
    third = {**first, "threads": 3, "arms": {"torch eager bf16": first["arms"]["torch eager bf16"]}}
    report["contests"].append(third)  # nothing of ours, so no ratios
    (tmp_path / "peers.json").write_text(json.dumps(report), encoding="utf-8")
    monkeypatch.setattr(readme, "PEERS", tmp_path / "peers.json")
    rows = {line.split(" | ")[0]: line.split(" | ")[1:4] for line in readme.peers().splitlines() if line[:1] == "|"}
    assert [cell == "—" for cell in rows["| torch eager fp32"]] == [True, False, True]
    assert [cell == "—" for cell in rows["| onnxruntime naive"]] == [False, True, True]
    assert re.fullmatch(r"[\d.]+ \([\d.]+, [\d.]+–[\d.]+\)", rows["| onnxruntime naive"][0])
