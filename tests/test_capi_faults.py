"""What goes wrong inside libs2f: always a code and a text, never an end of the program, and the library works on."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from capi import faults
from capi.host import HERE, build_library, compile_program, needs_compiler, run, write_voice
from tiny_bundle import write_tiny_bundle

import runtime

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("s2f"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny bundle and a voice; the programs are compiled into it."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny_bundle(folder / "tiny")
    soundfile.write(folder / "voice.wav", write_voice(folder), 16000)
    return folder


@pytest.fixture(scope="module")
def told(library: Path, place: Path) -> dict[tuple[str, str], tuple[int, str]]:
    """Code and text by point and call; one process lives through them all."""
    files = place / "tiny", place / "voice.f32", place / "voice.wav"
    lines = run(compile_program("faults", library, place), *files, HERE, *faults.POINTS).splitlines()
    fields = [line.split("\t") for line in lines]
    return {(name, call): (int(code), text) for name, call, code, text in fields}


def test_there_are_enough_points() -> None:
    assert len(faults.POINTS) >= 30


def test_without_a_fault_all_goes_well(told: dict[tuple[str, str], tuple[int, str]]) -> None:
    assert {code for (name, _), (code, _) in told.items() if name == "nothing"} == {0}


@pytest.mark.parametrize("name", [*faults.POINTS, "generate: no memory in C"])
def test_a_fault_is_a_code_and_a_text(name: str, told: dict[tuple[str, str], tuple[int, str]]) -> None:
    point = faults.POINTS.get(name, faults.Point("", MemoryError(), "generate", 1))
    code, text = told[name, point.call]
    assert code == point.code
    assert text
    assert len(text.encode()) < 1024
    if code == 1 and not isinstance(point.effect, faults.Mute) and point.target:
        assert type(point.effect).__name__ in text or isinstance(point.effect, StopIteration)


def test_messages(library: Path, place: Path) -> None:
    run(compile_program("messages", library, place), place / "tiny", place / "voice.f32")


def test_streams(library: Path, place: Path) -> None:
    run(compile_program("streams", library, place), place / "tiny", place / "voice.f32", place)
    voice, settled = np.fromfile(place / "voice.f32", np.float32), None
    with (
        runtime.load(place / "tiny", device="cpu", threads=1) as pipeline,
        pipeline.stream(16000, seed=5, steps=2) as stream,
    ):
        stream.push(voice[: 7 * 16000])
        deadline = time.monotonic() + 60
        while stream.portrait_seconds < 4 and time.monotonic() < deadline:
            settled = stream.poll() or settled
            time.sleep(0.01)
        stream.push(voice[7 * 16000 :][:8000])
        finished = stream.finish(60)
    assert settled is not None
    assert (place / "settled.rgb").read_bytes() == settled.image.tobytes()
    assert (place / "finished.rgb").read_bytes() == finished.image.tobytes()
