"""Does the face prior help? One trained denoiser, trained on for a while with each way and weight of the prior.

python benchmarks/prior_modes.py RUN --corpus CORPUS --out DIR [--steps N] [--voices N] [--seed S]

SCLDM's figure 6 sweeps the weight around 0.01 and plots mean and variance of the cosine; its eq. 2 names three ways to
put the prior in. Every arm starts from RUN's diffusion stage, sees the same batches and draws from the same noise.
"""

import argparse
import copy
import dataclasses
import io
import logging
import sys
from pathlib import Path

import numpy as np
import torch

from training.checkpoint import System, load_pretrained, load_system
from training.config import DiffusionConfig
from training.corpus.table import read_corpus, write_atomic
from training.data import load_pairs
from training.diffusion import diffusion_loss
from training.encoded import Encoded, encoded
from training.evaluate.judge import load_judge
from training.evaluate.painter import RunPainter, run_identity
from training.evaluate.protocol import Evaluation, Row
from training.evaluate.report import PRIOR, as_csv, as_table
from training.prior_shift import prior_shift

ARMS = (
    ("none", 0.0),
    *(("add", weight) for weight in (0.003, 0.01, 0.03, 0.1)),
    *((mode, weight) for mode in ("interpolate", "subtract") for weight in (0.01, 0.1)),
)
LEARNING_RATE = 1e-4
SAMPLING_STEPS = 8

logger = logging.getLogger(__name__)


def with_prior(system: System, mode: str, weight: float) -> System:
    """The same system with its own copy of the denoiser and another prior."""
    settings = dataclasses.replace(system.config.diffusion, prior_mode=mode, prior_weight=weight)
    config = dataclasses.replace(system.config, diffusion=settings)
    return dataclasses.replace(system, config=config, denoiser=copy.deepcopy(system.denoiser))


def train_on(system: System, train: Encoded, steps: int, seed: int) -> None:
    """`steps` further steps of the diffusion stage, the learning rate falling to 0; the denoiser ends in eval mode."""
    settings: DiffusionConfig = system.config.diffusion
    alpha_bar = torch.from_numpy(system.alphas_cumprod).float()
    shift = prior_shift(system.prior_mode, system.prior_weight, system.prior)
    mean, std = (value.view(1, -1, 1, 1) for value in (system.latent_mean, system.latent_std))
    optimiser = torch.optim.AdamW(system.denoiser.train().parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, steps)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    for _ in range(steps):
        rows = rng.integers(len(train.latents), size=settings.batch)
        view, window = (rng.integers(n, size=len(rows)) for n in (train.latents.shape[1], train.embeddings.shape[1]))
        latent = (train.latents[rows, view] - mean) / std
        dropped = torch.from_numpy(rng.random(len(rows)) < settings.condition_dropout)
        batch = (latent, train.embeddings[rows, window], dropped)
        with torch.autocast("cpu", torch.bfloat16, enabled=system.config.precision == "bfloat16"):
            loss = diffusion_loss(system.config, system.denoiser, batch, alpha_bar, shift)["loss"]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(system.denoiser.parameters(), 1.0)
        optimiser.step()
        falling.step()
    system.denoiser.eval()


def plot(rows: list[Row]) -> bytes:
    """Mean of the cosine with one deviation each way, one bar per arm, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    cosines = [row.values["cosine"] for row in rows]
    deviations = [row.values["cosine_variance"] ** 0.5 for row in rows]
    axes.errorbar(range(len(rows)), cosines, deviations, fmt="o", capsize=3)
    axes.set_xticks(range(len(rows)), [f"{row.arm}\n{row.prior_weight:g}" for row in rows], fontsize=8)
    axes.set_ylabel("cosine to the real person, mean ± deviation")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def main() -> int:
    """Trains and measures every arm, then writes the table and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200, help="further training steps of each arm (default 200)")
    parser.add_argument("--voices", type=int, help="test voices, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    system = load_system(options.run, "diffusion")
    _, speech, encoder, _ = load_pretrained(options.run)
    pairs = load_pairs(options.corpus, "train", system.config.face.size, options.run / "cache")
    train = encoded(pairs, "train", options.run, speech, encoder)
    evaluation = Evaluation(load_judge(None), read_corpus(options.corpus), voices=options.voices, seed=options.seed)
    rows = []
    for mode, weight in ARMS:
        arm = with_prior(system, mode, weight)
        train_on(arm, train, options.steps, options.seed)
        painter = RunPainter(arm, run_identity(options.run, "diffusion"))
        painter.name = f"{mode} {weight:g}"
        row = evaluation.row(painter, SAMPLING_STEPS, weight)
        rows.append(dataclasses.replace(row, arm=mode))
    batch = system.config.diffusion.batch
    title = (
        "# Ways and weights of the face prior\n\n"
        f"Each arm: the same diffusion network, trained on for {options.steps} steps of {batch} with its own prior, "
        f"{SAMPLING_STEPS} sampling steps, seed {options.seed}.\n\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "prior-modes.md", (title + as_table(rows, PRIOR) + "\n").encode())
    write_atomic(options.out / "prior-modes.csv", as_csv(rows, PRIOR).encode())
    write_atomic(options.out / "prior-modes.png", plot(rows))
    sys.stdout.write(as_table(rows, PRIOR) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
