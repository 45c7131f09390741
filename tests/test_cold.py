"""The cold start's benchmark: one process tells its steps, and the tables leave out what was disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import write_tiny_bundle

from benchmarks import cold, cold_table
from runtime.bench.speech import synthetic_speech, wav_bytes
from runtime.errors import ParityFailed

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's files")


def test_one_process(tmp_path: Path) -> None:
    folder, speech = write_tiny_bundle(tmp_path / "tiny"), tmp_path / "speech.wav"
    speech.write_bytes(wav_bytes(synthetic_speech(), 16000))
    found = cold.cold_start(folder, ("cpu", "fp32"), tmp_path / "cache", speech)
    assert speech.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert (found["device"], found["loaded"]) == ("cpu", ["onnxruntime"])
    assert (found["precision"], found["prepared"]) == ("fp32", False)
    steps = {name: value for name, value in found["ms"].items() if name != "all"}
    assert {"open encoder", "open unet", "open decoder", "first portrait", "save PNG"} < set(steps)
    assert sum(steps.values()) == pytest.approx(found["ms"]["all"])
    assert min(steps.values()) >= 0
    assert found["mib"]["peak"] > found["mib"]["private"] > 0


def one(ms: float, others: float | None, *, prepared: bool = False, image: str = "a") -> dict[str, Any]:
    about = {"device": "cpu", "precision": "int8", "prepared": prepared, "image": image, "others": others}
    return {**about, "ms": {"step": ms, "all": ms}, "mib": {"peak": 1.0, "private": 0.5}}


def test_disturbed_processes_are_left_out_while_enough_remain() -> None:
    clean, dirty = [one(1.0, 0.0)] * 3, [one(9.0, 0.5), one(9.0, None)]
    assert cold_table.counted(clean + dirty) == clean
    assert cold_table.counted(clean[:2] + dirty) == clean[:2] + dirty
    arms = {"cpu": clean + dirty, "cpu, prepared": [one(0.5, 0.0, prepared=True)]}
    about = {"cores": 2, "cpu": "CPU", "versions": {"onnxruntime": "1", "openvino": "2"}, "files_mb": 20.0}
    text = cold_table.tables({**about, "cold": arms, "imports_ms": {"numpy": 2.0}, "files_ms": {"read": [3.0]}})
    assert "| cpu: int8, not prepared | cpu: int8, prepared |" in text
    assert "| step | 1.0 | 0.5 |" in text
    assert "cpu: 3 of 5" in text
    assert "drew the same image, byte for byte" in text


def test_preparing_must_not_change_the_portrait() -> None:
    with pytest.raises(ParityFailed, match="2 different"):
        cold_table.check_alike({"cpu": [one(1, 0)], "cpu, prepared": [one(1, 0, image="b")]})


def test_ways_to_read_files(tmp_path: Path) -> None:
    spent = cold.files(write_tiny_bundle(tmp_path / "tiny"), 2)
    assert {name: len(values) for name, values in spent.items()} == {"read": 2, "mapped": 2, "mapped and copied": 2}
