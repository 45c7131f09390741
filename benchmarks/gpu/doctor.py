"""Piece "doctor": what is here, as found. Nothing is changed on the card."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.parts import JSON, Part
from benchmarks.gpu.plan import Job
from benchmarks.gpu.worker import versions
from runtime.backends import cuda
from runtime.doctor import examine, to_json
from runtime.errors import S2FError

FIELDS = (
    *("name", "driver_version", "compute_cap", "memory.total", "memory.used", "clocks.sm", "clocks.mem"),
    *("clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit", "temperature.gpu", "pstate", "compute_mode"),
    *("ecc.mode.current", "persistence_mode"),
)
RELEASE = Path("/etc/nv_tegra_release")


def measure(job: Job, part: Part) -> None:
    """`s2f doctor`, versions, the GPU as the driver tells it, and the card's clocks at this moment."""
    part.attempt("here", "doctor", lambda: to_json(examine()))
    part.attempt("here", "versions", versions)
    part.attempt("here", "nvidia_smi", nvidia_smi)
    part.attempt("here", "gpu", lambda: dataclasses.asdict(cuda.describe()))
    part.attempt("here", "l4t", _l4t)
    part.attempt("here", "bundle", lambda: {"name": job.bundle.manifest.name, "sha256": job.bundle.identity})


def nvidia_smi(fields: Sequence[str] = FIELDS) -> JSON | None:
    """What nvidia-smi says of the first GPU; None where it is not installed, as on a Jetson."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        return {"error": (done.stderr or done.stdout).strip()[:300]}
    return dict(zip(fields, (cell.strip() for cell in done.stdout.strip().split(", ")), strict=False))


def _l4t() -> str | None:
    try:
        return RELEASE.read_text(encoding="utf-8", errors="replace").splitlines()[0][:200]
    except (OSError, IndexError):
        return None


def place() -> JSON:
    """GPU, compute capability and driver, which results depend on; empty where there is no GPU.

    From nvidia-smi where there is one, so that every interpreter says the same.
    """
    found = nvidia_smi(("name", "driver_version", "compute_cap"))
    if found is not None and "error" not in found:
        return {"gpu": found["name"], "capability": found["compute_cap"], "driver": found["driver_version"]}
    try:
        gpu = cuda.describe()
    except S2FError:
        return {}
    driver = re.search(r"driver (\S+)", gpu.driver)
    return {"gpu": gpu.name, "capability": gpu.capability, "driver": driver[1] if driver else gpu.driver}
