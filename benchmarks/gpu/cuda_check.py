"""Piece "cuda": ONNX Runtime's CUDA provider against its CPU provider, through the public runtime, and `s2f bench`.

Needs onnxruntime-gpu, soundfile, soxr and pillow.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import runtime
from benchmarks.gpu.parts import JSON, NotHere, Part
from benchmarks.gpu.plan import Job
from runtime.backends import select
from runtime.bench import measure as bench
from runtime.bench import synthetic_speech
from runtime.errors import S2FError

VOICES, SEEDS = 4, 4
SECONDS = 20.0


def measure(job: Job, part: Part) -> None:
    """Portraits at the fewest and the most steps, because rounding adds up with them; then times of both devices."""
    try:
        select("cuda")
    except S2FError as reason:
        raise NotHere(str(reason)) from reason
    counts = sorted(job.bundle.manifest.step_tables)
    for steps in sorted({counts[0], counts[-1]}):
        part.attempt("portraits", f"{steps} steps", functools.partial(same_portraits, job, steps))
    for device in ("cuda", "cpu"):
        job.deadline.need(SECONDS, f"bench on {device}")
        part.attempt("bench", device, functools.partial(bench, job.bundle_path, device=device))


def same_portraits(job: Job, steps: int) -> JSON:
    """CPU and CUDA on 16 voice × seed pairs, and CUDA twice: largest and mean difference in grey levels."""
    voices: list[Any] = [(synthetic_speech(seed=voice), 16_000) for voice in range(VOICES)]
    images: dict[str, Any] = {}
    for name, device in (("cpu", "cpu"), ("cuda", "cuda"), ("again", "cuda")):
        with runtime.load(job.bundle_path, device=device) as pipeline:
            rows = [pipeline.generate(voices, steps=steps, seed=seed) for seed in range(SEEDS)]
        images[name] = np.stack([portrait.image for row in rows for portrait in row]).astype(np.int16)
    difference = np.abs(images["cuda"] - images["cpu"])
    return {
        "pairs": VOICES * SEEDS,
        "max_levels": int(difference.max()),
        "mean_levels": float(difference.mean()),
        "cuda_repeats": bool(np.array_equal(images["cuda"], images["again"])),
    }
