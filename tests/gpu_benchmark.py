"""What the tests of benchmarks/gpu share: stand-ins with the calls of CUDA's driver it makes, and small jobs."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
from fakes import bindings_fake
from fakes.world import World
from tiny_bundle import SHORTCUT, write_tiny_bundle
from tiny_bundle import Arm as TinyArm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.parts import read_part

SCRIPT = ROOT / "benchmarks" / "gpu" / "run.py"
SHORT = ["--runs", "2", "--rounds", "2", "--voices", "2", "--seeds", "2", "--portraits", "20", "--warm", "0"]
SMALL = [*SHORT, "--batches", "1,2", "--steps", "4,1"]


def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, and no card but that of the stand-ins."""
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("benchmarks.gpu.doctor.nvidia_smi", lambda *_: None)
    monkeypatch.setattr("benchmarks.gpu.card.TRANSFER", 1 << 12)


def install(monkeypatch: pytest.MonkeyPatch, version: str = "8.6", **settings: Any) -> World:
    """The stand-ins of one release, with the calls of CUDA's driver that only the benchmark makes."""
    world = fakes.install(monkeypatch, version, **settings)
    driver = world.modules["cuda.bindings.driver"]

    def create_event(world: World, flags: int) -> Any:
        return driver.CUevent(world.gpu.create_event(flags).handle)

    def record(world: World, event: Any, stream: Any) -> None:
        world.gpu.record(world.gpu.events[int(event)], world.gpu.stream(int(stream)))

    def synchronise(world: World, event: Any) -> None:
        world.gpu.synchronise_event(world.gpu.events[int(event)])

    def elapsed(world: World, begin: Any, end: Any) -> float:
        return float(world.gpu.elapsed(world.gpu.events[int(begin)], world.gpu.events[int(end)]))

    def memset(world: World, address: Any, value: int, size: int, stream: Any) -> None:
        world.gpu.fill(int(address), value, size, world.gpu.stream(int(stream)))

    def load_module(world: World, image: bytes) -> int:
        assert b".entry nothing" in image
        assert image.endswith(b"\0")
        return 7

    def get_function(world: World, module: int, name: bytes) -> int:
        assert (module, name) == (7, b"nothing")
        return 8

    def launch(world: World, kernel: int, *arguments: Any) -> None:
        assert (kernel, *arguments[:7], *arguments[8:]) == (8, 1, 1, 1, 1, 1, 1, 0, 0, 0)
        world.gpu.submit(world.gpu.stream(int(arguments[7])), microsecond, "KERNEL")

    def microsecond() -> None:
        world.gpu.clock += 0.001

    calls: dict[str, tuple[Callable[..., Any], int]] = {
        "cuEventCreate": (create_event, 1),
        "cuEventRecord": (record, 0),
        "cuEventSynchronize": (synchronise, 0),
        "cuEventElapsedTime": (elapsed, 1),
        "cuMemsetD8Async": (memset, 0),
        "cuModuleLoadData": (load_module, 1),
        "cuModuleGetFunction": (get_function, 1),
        "cuLaunchKernel": (launch, 0),
    }
    names = fakes.load("cuda.bindings.driver", "12.9").names
    for name, (call, results) in calls.items():
        assert name in names
        answering = bindings_fake.answering(bindings_fake.gives(results)(call))
        driver.__dict__[name] = types.MethodType(answering, world)  # a module made for this test alone
    return world


def tiny(tmp_path: Path, arm: TinyArm = SHORTCUT) -> Path:
    return write_tiny_bundle(tmp_path / "tiny", arm=arm)


def results(out: Path, piece: str) -> dict[str, Any]:
    data = read_part(out / f"{piece}.json")
    assert data is not None
    return data
