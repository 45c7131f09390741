"""The comparison of the CPU's backends: which arms there are, and that each draws the same."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from tiny_bundle import write_tiny_bundle

from benchmarks import cpu_backends
from runtime.bundle import read_manifest
from runtime.pipeline import shipped_bundle

pytest.importorskip("openvino")


def test_every_arm_is_timed_and_draws_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_backends, "neighbours", lambda _: contextlib.nullcontext(()))
    found = cpu_backends.compare(write_tiny_bundle(tmp_path / "tiny"), 1, 0.01)
    assert {"onnxruntime fp32", "openvino fp32"} < set(found["psnr_db"])
    assert min(value for name, value in found["psnr_db"].items() if "fp32" in name) > 40
    for spent in found["raw_ms"].values():
        assert all(len(spent[f"portrait, {count} neighbours"]) >= 3 for count in cpu_backends.NEIGHBOURS)
    assert "| onnxruntime fp32 |" in cpu_backends.table(found)


@pytest.mark.parametrize("offered", [False, True])
def test_eight_bits_where_the_bundle_offers_them(offered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backends, "offers_int8", lambda *_: offered)
    monkeypatch.setattr(cpu_backends, "precisions_here", lambda: ("bf16", "fp32"))
    manifest, more = read_manifest(shipped_bundle())[0], ["int8"] if offered else []
    assert cpu_backends.precisions_of("cpu", manifest) == ["fp32", *more]
    assert cpu_backends.precisions_of("openvino", manifest) == ["fp32", "bf16", *more]
