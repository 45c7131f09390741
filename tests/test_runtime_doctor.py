"""The doctor: says what works, what would be used, why not the rest, and never fails itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_bundle import add_variant, write_tiny_bundle

from runtime import doctor, machine
from runtime.backends import Device
from runtime.cli import main
from runtime.errors import CODES

CPU = Device("cpu", "onnxruntime", True)
NO_CUDA = Device("cuda", "onnxruntime", False, "no driver", 'pip install "s2f-edge[gpu]"')
NO_CPU = Device("cpu", "onnxruntime", False, "not installed", 'pip install "s2f-edge[cpu]"')


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_bundle(tmp_path / "tiny")
    monkeypatch.setattr(doctor, "shipped_bundle", lambda: folder)


@pytest.mark.usefixtures("shipped")
def test_a_healthy_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "available", lambda: [NO_CUDA, CPU])
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "cpu      onnxruntime: works; the one --device auto takes, in fp32" in text
    assert "cuda     onnxruntime: not usable. no driver" in text
    assert 'to change that: pip install "s2f-edge[gpu]"' in text
    assert text.endswith("Ready.\n")


def test_the_precision_that_auto_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = add_variant(write_tiny_bundle(tmp_path / "tiny"))
    monkeypatch.setattr(doctor, "shipped_bundle", lambda: folder)
    monkeypatch.setattr(doctor, "available", lambda: [CPU])
    for flags, precision in ((["avx_vnni"], "int8"), (["avx2"], "fp32")):
        monkeypatch.setattr("runtime.variants.cpu_flags", lambda flags=flags: flags)
        assert main(["doctor"]) == 0
        assert f"the one --device auto takes, in {precision}\n" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "available", lambda: [Device("cuda", "onnxruntime", True)])
    assert main(["doctor"]) == 0
    assert "the one --device auto takes, in the precision that was prepared\n" in capsys.readouterr().out


@pytest.mark.usefixtures("shipped")
def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "available", lambda: [Device("cuda", "onnxruntime", True), CPU])
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    assert report["chosen"] == "cuda"
    assert report["devices"][1] == {"name": "cpu", "backend": "onnxruntime", "usable": True, "reason": "", "cure": ""}
    assert report["packages"]["numpy"]


@pytest.mark.usefixtures("shipped")
def test_no_backend(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "available", lambda: [NO_CUDA, NO_CPU])
    assert main(["doctor"]) == CODES["BackendMissing"]
    assert "s2f-edge[cpu]" in capsys.readouterr().out


def test_no_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "shipped_bundle", lambda: tmp_path)
    monkeypatch.setattr(doctor, "available", lambda: [CPU])
    assert main(["doctor"]) == CODES["BundleNotFound"]
    assert "manifest.json" in capsys.readouterr().out


def test_this_machine() -> None:
    report = doctor.examine()
    assert report.threads >= 1
    assert {device.name for device in report.devices} == {"cpu", "openvino", "cuda", "tensorrt"}
    assert all(device.usable or (device.reason and device.cure) for device in report.devices)


def fake_machine(root: Path, siblings: dict[int, str], quota: str = "") -> None:
    for cpu, text in siblings.items():
        folder = root / "cpus" / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    (root / "cgroup").mkdir()
    if quota:
        (root / "cgroup" / "cpu.max").write_text(quota + "\n")


@pytest.mark.parametrize(
    ("siblings", "quota", "cores"),
    [
        ({0: "0", 1: "1"}, "", 2),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, "", 2),
        ({0: "0,2", 2: "0,2"}, "", 1),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "max 100000", 4),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "150000 100000", 2),
        ({0: "0", 1: "1"}, "10000 100000", 1),
        ({0: "0", 1: "1"}, "nonsense", 2),
        ({}, "", 1),
    ],
)
def test_threads_follow_cores_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: dict[int, str], quota: str, cores: int
) -> None:
    fake_machine(tmp_path, siblings, quota)
    monkeypatch.setattr(machine, "_CPU_FOLDER", tmp_path / "cpus")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "affinity", lambda: set(siblings))
    assert machine.usable_cores() == cores


def test_cpus_without_topology_count_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPU_FOLDER", tmp_path)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "affinity", lambda: {0, 1, 2})
    assert machine.usable_cores() == 3


@pytest.mark.usefixtures("shipped")
def test_engines_that_are_not_built_yet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "available", lambda: [Device("tensorrt", "tensorrt", True), CPU])
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "works; before it draws the shipped bundle: s2f prepare --device tensorrt" in text
    assert "cpu      onnxruntime: works; the one --device auto takes" in text
