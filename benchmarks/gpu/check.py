"""Checks that need an NVIDIA GPU: one script, one JSON file. What it checks and what has run stands in README.md.

python benchmarks/gpu/check.py -o benchmarks/results/gpu-HOST.json [--bundle BUNDLE]
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import runtime
from runtime.bench import measure, synthetic_speech
from runtime.doctor import examine, to_json

VOICES, SEEDS = 4, 4


def same_portraits(bundle: Path | None, steps: int) -> dict[str, float]:
    """CPU and CUDA on 16 voice × seed pairs, and CUDA twice: largest and mean difference in grey levels."""
    voices = [(synthetic_speech(seed=voice), 16_000) for voice in range(VOICES)]
    images: dict[str, np.ndarray] = {}
    for name, device in (("cpu", "cpu"), ("cuda", "cuda"), ("again", "cuda")):
        with runtime.load(bundle, device=device) as pipeline:
            rows = [pipeline.generate(voices, steps=steps, seed=seed) for seed in range(SEEDS)]
        images[name] = np.stack([portrait.image for row in rows for portrait in row]).astype(np.int16)
    difference = np.abs(images["cuda"] - images["cpu"])
    return {
        "max_levels": int(difference.max()),
        "mean_levels": float(difference.mean()),
        "cuda_repeats": bool(np.array_equal(images["cuda"], images["again"])),
    }


def fewest_and_most(bundle: Path | None) -> list[int]:
    """The ends of what the bundle offers: rounding adds up with the steps."""
    with runtime.load(bundle, device="cpu") as pipeline:
        counts = pipeline.manifest.step_tables
    return sorted({min(counts), max(counts)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()
    result = {"doctor": to_json(examine())}
    write(options.out, result)  # before anything can fail for want of CUDA: it says what is missing
    counts = fewest_and_most(options.bundle)
    result["portraits"] = {steps: same_portraits(options.bundle, steps) for steps in counts}
    result["bench"] = {device: measure(options.bundle, device=device) for device in ("cpu", "cuda")}
    write(options.out, result)
    worst = max(entry["max_levels"] for entry in result["portraits"].values())
    repeats = all(entry["cuda_repeats"] for entry in result["portraits"].values())
    sys.stdout.write(f"{options.out}: CUDA differs from the CPU by at most {worst} grey levels; repeats: {repeats}\n")
    return 0 if worst <= 2 and repeats else 1


def write(path: Path, result: dict) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
