"""How libs2f finds its Python and packages, without the environment, and what it says where they are not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from capi.host import ROOT, build_library, compile_program, make_environment, needs_compiler, run
from tiny_bundle import write_tiny_bundle

pytestmark = needs_compiler

OF_OTHERS = """
import ctypes, sys
s2f = ctypes.CDLL(sys.argv[1])
s2f.s2f_last_error.restype = ctypes.c_char_p
print(s2f.s2f_open(None, None, ctypes.byref(ctypes.c_void_p())), s2f.s2f_last_error().decode())
"""


class Place:
    """A virtual environment with this package and all it needs as links, libs2f built inside, and a program."""

    def __init__(self, folder: Path) -> None:
        self.root, self.packages = make_environment(folder / "venv")
        self.python = self.root / "bin" / "python"
        (self.packages / "runtime").symlink_to(ROOT / "runtime")
        self.bundle = write_tiny_bundle(folder / "tiny")
        build_library(self.root, self.python, cwd=folder)
        self.program = compile_program("opening", self.root, folder)

    def open(self, times: int = 1, **environment: str) -> list[tuple[int, str]]:
        """What s2f_open says each time, in one process."""
        lines = run(self.program, self.bundle, times, **environment).splitlines()
        return [(int(code), text) for code, text in (line.split("\t") for line in lines)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def place(original: Place) -> Place:
    """The place, as it was made: what a test has moved away or added is put right afterwards."""
    before = set(original.packages.iterdir())
    yield original
    for entry in set(original.packages.iterdir()) - before:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for entry in before - set(original.packages.iterdir()):
        target = ROOT / "runtime" if entry.name == "runtime" else Path(np.__file__).parents[1] / entry.name
        entry.symlink_to(target)


def test_the_environment_has_no_say(place: Place, tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("raise SystemExit(9)")
    poison = {
        "PYTHONHOME": "/nowhere",
        "PYTHONPATH": str(tmp_path),
        "PYTHONSTARTUP": "/nowhere",
        "PYTHONWARNINGS": "error",
        "PYTHONVERBOSE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONINSPECT": "1",
        "VIRTUAL_ENV": "/nowhere",
        "LC_ALL": "nowhere",
        "HOME": str(tmp_path),
        "PATH": "/nowhere",
    }
    assert place.open(**poison) == [(0, "")]


def test_text_is_utf_8_whatever_the_locale(place: Place) -> None:
    told = run(place.program, "/nowhere/tïny", 1, LC_ALL="C")
    assert told.startswith("30\t")
    assert "/nowhere/tïny" in told


def test_the_folder_may_be_moved_as_a_whole(place: Place, tmp_path: Path) -> None:
    """And nothing is looked for where it was."""
    moved = tmp_path / "moved"
    place.root.rename(moved)
    place.packages.mkdir(parents=True)
    (place.packages / "runtime.py").write_text("raise SystemExit")
    try:
        assert place.open(LD_LIBRARY_PATH=str(moved / "lib")) == [(0, "")]
    finally:
        shutil.rmtree(place.root)
        moved.rename(place.root)


@pytest.mark.parametrize(
    ("entry", "package"),
    [
        ("runtime", "s2f-edge"),
        ("numpy", "numpy"),
        ("_cffi_backend*", "cffi"),
        ("onnxruntime", "s2f-edge[cpu]"),
    ],
)
def test_a_missing_package_is_named(entry: str, package: str, place: Place) -> None:
    for found in list(place.packages.glob(entry)):
        found.unlink()
    for code, text in place.open(2):
        assert code == 40, text
        assert "pip install" in text
        assert package in text


def test_a_package_that_is_damaged(place: Place) -> None:
    (place.packages / "numpy").unlink()
    (place.packages / "numpy.py").write_text("raise ImportError('no symbol PyNothing')")
    ((code, text),) = place.open()
    assert (code, "no symbol PyNothing" in text) == (40, True)


def test_the_library_without_its_module(place: Place, tmp_path: Path) -> None:
    """Copied to another place alone."""
    shutil.copy(place.root / "lib" / "libs2f.so.1", place.packages)
    ((code, text),) = place.open(LD_LIBRARY_PATH=str(place.packages))
    assert (code, f"{place.packages}/_s2f_native.so: " in text) == (40, True)


def test_another_release_of_the_package(place: Place) -> None:
    (place.packages / "runtime").unlink()
    (place.packages / "runtime.py").write_text("__version__ = '99.0'")
    ((code, text),) = place.open()
    assert code == 40
    assert "99.0" in text
    assert "s2f-capi build" in text


def test_another_state_of_the_package(place: Place) -> None:
    """A checkout that moved on since the library was built."""
    link, package = place.packages / "runtime", place.packages / "runtime"
    link.unlink()
    package.mkdir()
    for entry in (ROOT / "runtime").iterdir():
        if entry.name != "capi":
            (package / entry.name).symlink_to(entry)
    capi = Path(shutil.copytree(ROOT / "runtime" / "capi", package / "capi"))
    text = (capi / "bridge.py").read_text(encoding="utf-8")
    (capi / "bridge.py").write_text(text.replace('"close", ', '"close", "stream_push_later", '), encoding="utf-8")
    ((code, said),) = place.open()
    shutil.rmtree(package)
    assert (code, "run: s2f-capi build" in said) == (40, True)


@pytest.mark.parametrize(
    ("error", "code"),
    [("SystemExit(4)", 1), ("KeyboardInterrupt", 1), ("MemoryError", 0), ("ImportError('x')", 0), ("ValueError", 0)],
)
def test_a_site_that_fails_does_not_end_the_program(error: str, code: int, place: Place) -> None:
    """An Exception in a .pth file is passed over by Python, with a text on stderr that here goes nowhere."""
    failing = place.packages / "failing.pth"
    failing.write_text(f"import sys; exec('raise {error}')\n")
    told = place.open(2)
    assert [one for one, _ in told] == [code, code]
    failing.unlink()


def test_packages_that_arrive_later_are_found(place: Place, tmp_path: Path) -> None:
    """A second s2f_open in the same process looks again."""
    (place.packages / "runtime").unlink()
    process = subprocess.Popen(
        [place.program, str(place.bundle), "200"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("40\t")
    (place.packages / "runtime").symlink_to(ROOT / "runtime")
    answers = process.communicate(timeout=60)
    assert answers[0].splitlines()[-1] == "0\t"
    assert answers[1] == ""


def test_a_python_that_is_gone(place: Place, tmp_path: Path) -> None:
    """A link to nowhere in bin: an error, and not another Python further up."""
    gone = tmp_path / "gone"
    interpreter = place.python.with_name(f"python{sys.version_info[0]}.{sys.version_info[1]}")
    interpreter.rename(gone)
    interpreter.symlink_to("nowhere")
    try:
        told = place.open(2)
    finally:
        gone.replace(interpreter)
    assert [code for code, _ in told] == [40, 40]
    assert f"there is no {interpreter}" in told[0][1]
    assert "s2f-capi build" in told[0][1]


def test_programs_in_other_pythons(place: Place) -> None:
    """One of another version cannot lend its interpreter; one of the same version lacks the packages."""
    others = other_pythons()
    if not others:
        pytest.skip("there is no other Python here")
    for python in others:
        asked = [python, "-I", "-c", OF_OTHERS, str(place.root / "lib" / "libs2f.so")]
        done = subprocess.run(asked, capture_output=True, text=True, cwd="/")
        assert (done.returncode, done.stderr, done.stdout[:3]) == (0, "", "40 "), (python, done.stdout + done.stderr)
        same = f"python{sys.version_info[0]}.{sys.version_info[1]}" in python
        assert ("pip install" if same else "was built for Python") in done.stdout


def other_pythons() -> set[str]:
    """Interpreters on the usual paths that run, and are not the one of this test."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin", "/usr/local/bin"]
    found = {os.path.realpath(path) for one in folders for path in Path(one).glob("python3.[0-9]*[0-9]")}
    running = {path for path in found if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0}
    return running - {os.path.realpath(sys.executable)}
