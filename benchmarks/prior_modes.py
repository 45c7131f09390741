"""Does the face prior help? One diffusion network trained with each way and weight of the prior, all else equal.

    python benchmarks/prior_modes.py RUN --corpus CORPUS --out DIR [--steps N] [--voices N] [--seed S]

SCLDM's figure 6 sweeps the weight around 0.01 and plots mean and variance of the cosine; its eq. 2 names three ways to
put the prior in. Every arm takes RUN's encoders, prior and decoder, starts from the same random denoiser, trains for N
steps on the same batches and draws from the same noise. Started again, it continues.
"""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

from runtime.errors import S2FError
from training.checkpoint import load_stage, load_system
from training.config import Config
from training.corpus.table import write_atomic
from training.diffusion import diffusion
from training.evaluate.assess import Options, facts_of, options_of, prepared
from training.evaluate.commands import add_shared_arguments
from training.evaluate.painter import RunPainter, run_identity
from training.evaluate.plots import prior_plot
from training.evaluate.protocol import Result
from training.evaluate.report import PRIOR, as_csv, prior_markdown

ARMS = (
    ("none", 0.0),
    *(("add", weight) for weight in (0.003, 0.01, 0.03, 0.1)),
    *((mode, 0.1) for mode in ("interpolate", "subtract")),
)
FROZEN = ("cache", *(f"{stage}.safetensors" for stage in ("pretrain", "align", "prior", "decoder")))
SAMPLING_STEPS = 8


def train(run: Path, corpus: Path, out: Path, config: Config) -> Path:
    """A run folder under `out` with RUN's frozen stages and a diffusion stage of its own."""
    settings = config.diffusion
    folder = out / "runs" / f"{settings.prior_mode}-{settings.prior_weight:g}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FROZEN:
        if (run / name).exists() and not (folder / name).exists():
            (folder / name).symlink_to((run / name).resolve())
    if not (folder / "diffusion.safetensors").exists():
        diffusion(config, corpus, folder)
    return folder


def measure(run: Path, options: Options, steps: int) -> Result:
    """Trains and measures every arm."""
    config = load_stage(run, "diffusion").config
    evaluation = prepared(options)
    rows, painters = [], []
    for mode, weight in ARMS:
        settings = dataclasses.replace(config.diffusion, steps=steps, prior_mode=mode, prior_weight=weight)
        folder = train(run, options.corpus, options.out, dataclasses.replace(config, diffusion=settings))
        system = dataclasses.replace(load_system(folder, "diffusion"), schedules={})  # even timesteps, alike for all
        painter = RunPainter(system, run_identity(folder, "diffusion"))
        painter.name = f"{mode} {weight:g}"
        painters.append(painter)
        rows.append(dataclasses.replace(evaluation.row(painter, SAMPLING_STEPS, weight), arm=mode))
    return Result((), tuple(rows), facts_of(evaluation, painters, options, None))


def write(result: Result, out: Path, steps: int) -> None:
    """prior-modes.md, .csv and .png."""
    method = (
        f"Every arm: the same random denoiser, {steps} training steps with its own prior, then {SAMPLING_STEPS} "
        "even sampling steps. Mode none has no weight."
    )
    write_atomic(out / "prior-modes.md", f"{prior_markdown(result)}\n{method}\n".encode())
    write_atomic(out / "prior-modes.csv", as_csv(result.prior, PRIOR).encode())
    write_atomic(out / "prior-modes.png", prior_plot(result))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder with a finished diffusion stage")
    add_shared_arguments(parser)
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each arm (default 1000)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = options_of(arguments)
    try:
        result = measure(arguments.run, options, arguments.steps)
        write(result, options.out, arguments.steps)
    except S2FError as error:
        sys.stderr.write(f"prior_modes: error [{error.code}]: {error}\n")
        return error.code
    sys.stdout.write(prior_markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
