"""Programs in C that use libs2f, compiled and run as processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runtime.bench import synthetic_speech

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
COMPILER = shutil.which("cc")

needs_compiler = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="needs a C compiler on Linux"
)


def build_library(folder: Path, python: Path | str = sys.executable, cwd: Path = ROOT, **environment: str) -> Path:
    """libs2f under `folder`, by the command, with every warning an error; skips where cffi is missing."""
    pytest.importorskip("cffi")
    command = [str(python), "-m", "runtime.capi.build", "build", "-o", str(folder)]
    flags = {"CFLAGS": "-O2 -g -Werror", **environment}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **flags})
    assert done.returncode == 0, done.stderr
    assert str(folder / "lib" / "libs2f.so") in done.stdout.split()
    return folder


def make_environment(root: Path) -> tuple[Path, Path]:
    """A virtual environment at `root` with all that this one has, as links, but this package; and its packages."""
    venv.create(root, symlinks=True)
    (packages,) = root.glob("lib/python*/site-packages")
    for entry in Path(np.__file__).parents[1].iterdir():
        if entry.suffix != ".pth" and not entry.name.startswith(("__", "runtime", "s2f_edge")):
            (packages / entry.name).symlink_to(entry)
    return root, packages


def compile_program(name: str, library: Path, folder: Path, *flags: str) -> Path:
    """tests/capi/NAME.c as a program that finds the library where it lies."""
    assert COMPILER is not None
    program, lib = folder / name, library / "lib"
    command = [COMPILER, *STRICT, "-O1", "-g", f"-I{library / 'include'}", f"-I{HERE}", str(HERE / f"{name}.c")]
    command += ["-o", str(program), *flags, "-pthread", "-ldl", "-lm", f"-L{lib}", f"-Wl,-rpath,{lib}", "-ls2f"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path | str, *arguments: Any, status: int = 0, timeout: float = 120, **environment: str) -> str:
    """What the program writes to stdout. It must end with `status` and write nothing to stderr."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        env={**known, "OMP_NUM_THREADS": "1", **environment},
    )
    assert (done.returncode, done.stderr) == (status, ""), done.stdout + done.stderr
    return done.stdout


def write_voice(folder: Path) -> npt.NDArray[np.float32]:
    """voice.f32: eight seconds of a synthetic voice at 16 kHz as the programs read it; returned as well."""
    voice = np.concatenate([synthetic_speech(), synthetic_speech(seed=1)])[: 8 * 16000].astype(np.float32)
    (folder / "voice.f32").write_bytes(voice.tobytes())
    return voice
