"""`s2f prepare`: finds what a device needs by entry point, and does nothing where nothing is needed."""

from __future__ import annotations

import gc
import weakref
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import write_tiny_bundle

from runtime import prepare as module
from runtime.backends import Device
from runtime.bundle import Bundle, read_bundle
from runtime.cli import main
from runtime.errors import CODES, BackendMissing, DeviceUnavailable, NotPrepared
from runtime.prepare import GROUP, prepare


class Point:
    """An entry point whose function notes what it was given."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error, self.asked = name, error, []  # type: ignore[var-annotated]

    def load(self) -> Any:
        if isinstance(self.error, ImportError):
            raise self.error

        def function(bundle: Bundle, tell: Any) -> None:
            self.asked.append(bundle.manifest.name)
            if self.error is not None:
                raise self.error
            tell("done")

        return function


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny")


def offer(monkeypatch: pytest.MonkeyPatch, *points: Point, usable: tuple[str, ...] = ("cpu",)) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: list(points) if group == GROUP else [])
    monkeypatch.setattr(module, "available", lambda: [Device(name, "x", name in usable) for name in module.DEVICES])


def test_the_builder_of_engines_is_registered() -> None:
    found = {point.name: point.value for point in metadata.entry_points(group=GROUP)}
    assert found["tensorrt"] == "export.engines:prepare"


def test_auto_prepares_what_works_here(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    first, second = Point("tensorrt"), Point("cuda")
    offer(monkeypatch, first, second, usable=("cpu", "tensorrt"))
    told: list[str] = []
    prepare(read_bundle(folder), "auto", told.append)
    assert (first.asked, second.asked, told) == (["tiny"], [], ["done"])


def test_a_device_that_needs_nothing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    offer(monkeypatch, Point("tensorrt"))
    for device in ("auto", "cpu"):
        told: list[str] = []
        prepare(read_bundle(folder), device, told.append)
        assert "nothing to prepare" in told[0]


def test_a_device_asked_for_is_prepared_or_an_error(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    bundle = read_bundle(folder)
    offer(monkeypatch, Point("tensorrt"))
    prepare(bundle, "tensorrt", lambda _: None)  # whether it works here is for its function to say
    offer(monkeypatch, Point("tensorrt", ModuleNotFoundError("No module named 'onnx'", name="onnx")))
    with pytest.raises(BackendMissing, match=r"onnx.*pip install onnx"):
        prepare(bundle, "tensorrt", lambda _: None)
    offer(monkeypatch)
    with pytest.raises(BackendMissing):
        prepare(bundle, "tensorrt", lambda _: None)
    with pytest.raises(DeviceUnavailable, match="auto, cpu, openvino, cuda, tensorrt"):
        prepare(bundle, "npu", lambda _: None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("libprotobuf.so.32: cannot open shared object file"), "libprotobuf.so.32: cannot open"),
        (ModuleNotFoundError("No module named 'export'", name="export"), None),
    ],
)
def test_nobody_is_sent_to_install_what_is_no_package(
    error: Exception, said: str | None, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    offer(monkeypatch, Point("tensorrt", error))
    with pytest.raises(BackendMissing if said else ModuleNotFoundError, match=said) as caught:
        prepare(read_bundle(folder), "tensorrt", lambda _: None)
    assert "pip install" not in str(caught.value)


def test_a_device_that_fails_keeps_no_memory_for_the_next(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    class Big:
        """What a build holds."""

    held: list[weakref.ref[Big]] = []

    def fails(*_: Any) -> None:
        big = Big()
        held.append(weakref.ref(big))
        raise NotPrepared("no")

    def looks(*_: Any) -> None:
        assert held[0]() is None

    first, second = Point("cuda"), Point("tensorrt")
    first.load, second.load = lambda: fails, lambda: looks  # type: ignore[method-assign]
    offer(monkeypatch, first, second, usable=("tensorrt", "cuda"))
    gc.disable()
    try:
        prepare(read_bundle(folder), "auto", lambda _: None)
    finally:
        gc.enable()


def test_the_command(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offer(monkeypatch, Point("tensorrt"))
    assert main(["prepare", str(folder), "--device", "tensorrt"]) == 0
    assert capsys.readouterr().out == "done\n"
    offer(monkeypatch, Point("tensorrt", NotPrepared("no. Run: this")))
    assert main(["prepare", str(folder), "--device", "tensorrt"]) == CODES["NotPrepared"]
    assert capsys.readouterr().err == "s2f: error [43]: no. Run: this\n"
