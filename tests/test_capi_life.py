"""What a program lives through with libs2f: threads, forks, signals, callbacks, closing, being loaded and left."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from capi.host import HERE, build_library, compile_program, needs_compiler, run, write_voice
from tiny_bundle import write_tiny_bundle

pytestmark = needs_compiler

PACKAGES = os.pathsep.join([str(HERE.parents[1]), *(path for path in sys.path if path.endswith("-packages"))])


def shared_python() -> Path:
    return Path(sysconfig.get_config_var("LIBDIR")) / f"libpython{sysconfig.get_config_var('LDVERSION')}.so.1.0"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("s2f"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny bundle and a voice; the programs are compiled into it."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny_bundle(folder / "tiny")
    write_voice(folder)
    return folder


@pytest.mark.parametrize("command", ["fork", "host", "masks", "opens", "thread"])
def test_life(command: str, library: Path, place: Path) -> None:
    run(compile_program("life", library, place), command, place / "tiny", place / "voice.f32")


@pytest.mark.parametrize(("command", "moments"), [("beside", (0, 20, 45, 90, 160)), ("drawing", (0,)), ("told", (0,))])
def test_a_program_ends_in_the_midst_of_things(
    command: str, moments: tuple[int, ...], library: Path, place: Path
) -> None:
    program = compile_program("ends", library, place)
    for moment in moments:
        assert run(program, command, place / "tiny", place / "voice.f32", moment, timeout=20) == ""


@pytest.mark.parametrize(
    ("command", "moments"), [("locked", (0,)), ("python-first", (30, 60, 90)), ("interpreters", (0,))]
)
def test_a_program_ends_its_own_python(command: str, moments: tuple[int, ...], library: Path, place: Path) -> None:
    program = compile_program("ends", library, place)
    files = place / "tiny", place / "voice.f32"
    for moment in moments:
        assert run(program, command, *files, moment, shared_python(), timeout=20, PYTHONPATH=PACKAGES) == ""


@pytest.mark.parametrize("command", ["progress", "closing", "within"])
def test_watched(command: str, library: Path, place: Path) -> None:
    run(compile_program("watched", library, place), command, place / "tiny", place / "voice.f32")


def test_threads_draw_what_one_draws(library: Path, place: Path) -> None:
    run(compile_program("threads", library, place), place / "tiny", place / "voice.f32", 8, 25)


@pytest.mark.soak
def test_threads_for_long(library: Path, place: Path) -> None:
    run(compile_program("threads", library, place), place / "tiny", place / "voice.f32", 8, 500, timeout=3600)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_loaded_and_left(scope: str, library: Path, place: Path) -> None:
    program = compile_program("loops", library, place, "-Wl,--as-needed")
    run(program, library / "lib" / "libs2f.so", place / "tiny", place / "voice.f32", 10, scope)


@pytest.mark.soak
@pytest.mark.parametrize("scope", ["local", "global"])
def test_loaded_and_left_for_long(scope: str, library: Path, place: Path) -> None:
    program = compile_program("loops", library, place, "-Wl,--as-needed")
    told = run(program, library / "lib" / "libs2f.so", place / "tiny", place / "voice.f32", 100, scope, timeout=3600)
    _, early, late = map(int, told.split())
    assert late - early < 8 * 1024, told  # KiB, over 90 pipelines opened and closed


@pytest.mark.soak
def test_two_hundred_processes(library: Path, place: Path) -> None:
    program = compile_program("ends", library, place)
    for number in range(200):
        run(program, "beside", place / "tiny", place / "voice.f32", number)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_program_in_c_with_a_python_of_its_own(scope: str, library: Path, place: Path) -> None:
    program = compile_program("embedding", library, place)
    run(program, shared_python(), place / "tiny", place / "voice.f32", scope, PYTHONPATH=PACKAGES)


@pytest.mark.parametrize(
    "how",
    [
        "plain",
        "holding the GIL",
        "after a capsule was looked into",
        "from threads",
        "from threads holding the GIL",
    ],
)
def test_a_program_in_python(how: str, library: Path, place: Path) -> None:
    """The library uses the interpreter that runs already, and leaves it as it is."""
    command = [sys.executable, str(HERE / "in_python.py"), str(library / "lib" / "libs2f.so"), str(place), how]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "good\n", ""), done.stdout + done.stderr


@pytest.mark.soak
def test_the_way_through_c_costs_little_and_keeps_nothing(library: Path, place: Path, tmp_path: Path) -> None:
    """10,000 calls from C and as many from Python, by turns."""
    program = compile_program("border", library, place)
    told = run(program, place / "tiny", place / "voice.f32", 10_000, tmp_path, timeout=3600)
    early, late = map(int, told.split())
    c, python = (np.loadtxt(tmp_path / name) for name in ("c.txt", "python.txt"))
    difference = float(np.median(c) - np.median(python))
    sys.stdout.write(f"from C {difference:.0f} µs more; resident {early} to {late} KiB\n")
    assert difference < 200
    assert late - early < 9 * 1024  # KiB, over 9,000 calls each
