"""Fresh processes: what importing takes, and the way from a shell to a saved PNG."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from ..backends import Settings, tensorrt
from ..errors import BackendFailed
from .core import stopwatch
from .speech import synthetic_speech, wav_bytes

IMPORTS, COLD_STARTS = 5, 5
ROOT = Path(__file__).resolve().parent.parent.parent

_IMPORT = "import time; t = time.perf_counter(); {0}; print((time.perf_counter() - t) * 1e3)"


def fresh_processes(folder: Path, asked: Settings, device: str, steps: int | None) -> dict[str, list[float]]:
    """Milliseconds of importing this package alone and with everything a call needs, and of a process that draws.

    `asked`: what the user asked for, "auto" where it is left to the process, as in a user's own: to find the device and
    the precision is part of a cold start. `device`: the one that is found.
    """
    everything = f"import runtime.pipeline, soundfile, soxr, PIL.Image; {_import_of(device)}"
    times = {
        "import_runtime": [float(_python("-c", _IMPORT.format("import runtime"))) for _ in range(IMPORTS)],
        "import_all": [float(_python("-c", _IMPORT.format(everything))) for _ in range(IMPORTS)],
    }
    with tempfile.TemporaryDirectory() as scratch:
        speech, portrait = Path(scratch) / "speech.wav", Path(scratch) / "portrait.png"
        speech.write_bytes(wav_bytes(synthetic_speech(), 16000))
        options = ["--device", asked.device, "--threads", str(asked.threads), "--precision", asked.precision]
        options += ["--bundle", str(folder.absolute())]
        options += [] if steps is None else ["--steps", str(steps)]
        command = ("-m", "runtime", "generate", str(speech), "-o", str(portrait), *options)
        times["process_to_png"] = stopwatch(lambda: _python(*command), COLD_STARTS)
    return times


def _import_of(device: str) -> str:
    """The statements that import a device's package."""
    if device == "openvino":
        return "from runtime.backends import openvino; openvino.package()"  # as the package does it: no telemetry
    return f"import {tensorrt.package().__name__ if device == 'tensorrt' else 'onnxruntime'}"


def _python(*arguments: str) -> str:
    """Standard output of a fresh Python that imports this very package. Raises BackendFailed where it fails.

    Python looks for modules in the working folder first, and the caller's may hold anything, also a folder named
    `runtime`: so the process works in a new, empty one.
    """
    inherited = [str(Path(part).absolute()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    path = os.pathsep.join([*_own_place(), *inherited])
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=empty,
            env={**os.environ, "PYTHONPATH": path},
        )
    if done.returncode:
        raise BackendFailed(f"A fresh process failed: {done.stderr.strip()[-400:]}")
    return done.stdout


def _own_place() -> list[str]:
    """The folder this package lies in, unless Python looks there anyway: installed packages come after the standard
    library, and on PYTHONPATH they would come before it.
    """
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    return [] if ROOT in installed else [str(ROOT)]
