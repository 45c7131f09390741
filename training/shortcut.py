"""Stage 5: few-step sampling. Rectified flow with step-size conditioning and self-consistency (Frans et al. 2024).

The path is x_t = (1 - t) x_0 + t x_1 with the face prior in its source, x_1 = eps + w·prior, for every weight w of the
served range. The network is the diffusion stage's, which is a flow model already (`training.sampling.shortcut_table`);
it learns to leap: a step of size d must land where two steps of d/2 land. The smallest steps learn from two guided
steps of the flow itself, so that guidance is folded in and serving needs one forward per step.

Otherwise than in the paper the targets come from the weights being trained, not from averaged ones, half of a batch
learns to leap, and the flow itself (level 0) is a step size of its own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from training.checkpoint import Checkpoint, encoders_hash, load_pretrained, load_stage, restore, save_checkpoint
from training.config import Config
from training.corpus.table import read_corpus
from training.data import fingerprint, load_pairs
from training.diffusion import voices_and_noise
from training.encoded import Encoded, encoded
from training.loop import Stage, clear_state, device_of_training, run_stage
from training.models.denoiser import Denoiser
from training.sampler import folded_network, sample
from training.sampling import alphas_cumprod, flow_timestep, shortcut_table
from training.schedule import SEARCHED, Schedule, as_tensors, leaps, search
from training.sheets import grid

PREVIEW_STEPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Batch:
    """Standardised latents x0 and source x1 [n, C, h, w], unit embeddings [n, E], which rows train unconditionally."""

    x0: Tensor
    x1: Tensor
    embedding: Tensor
    dropped: Tensor


def shortcut(config: Config, corpus: Path, run: Path) -> Path:
    """Trains the denoiser of the diffusion stage to leap; writes RUN/shortcut.safetensors (averaged weights).

    Raises CheckpointInvalid, CorpusInvalid, OutputUnwritable, TrainingDiverged.
    """
    settings, key = config.shortcut, fingerprint(read_corpus(corpus))
    pretrained, speech, encoder, decoder = load_pretrained(run, config, key)
    face_prior = load_stage(run, "prior", config, key).tensors["prior"]
    start = load_stage(run, "diffusion", config, key)
    device = device_of_training()
    train, val = (
        encoded(load_pairs(corpus, split, config.face.size, run / "cache"), split, run, speech, encoder)
        for split in ("train", "val")
    )
    mean, std = (pretrained.tensors[name].view(1, -1, 1, 1).to(device) for name in ("latent_mean", "latent_std"))
    denoiser = Denoiser(config)
    restore(denoiser, start.group("denoiser"), "denoiser")
    leap_as_it_flows(denoiser)
    model = nn.ModuleDict({"denoiser": denoiser}).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=1e-4)
    flow = Flow(config, denoiser)
    source_prior = face_prior.to(device)

    def loss(_: int, rng: np.random.Generator) -> dict[str, Tensor]:
        latent, embedding, dropped = train.draw(rng, settings.batch, settings.condition_dropout, device)
        x0 = (latent - mean) / std
        x1 = source(torch.randn_like(x0), source_prior, settings.prior_weights, rng)
        batch = Batch(x0, x1, embedding, dropped)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            return shortcut_loss(flow, batch, rng)

    decoder.to(device)

    def sheet() -> Image.Image:
        drawn = preview(config, denoiser, val.embeddings[:8, 0].to(device), source_prior)
        return grid([decoder(val.latents[:8, 0].to(device)), *(decoder(z * std + mean) for z in drawn)])

    origin = dataclasses.replace(pretrained.origin, parent=encoders_hash(run, "shortcut"))
    stage = Stage("shortcut", config, settings.steps, model, optimiser, loss, sheet, origin, settings.ema)
    run_stage(stage, run)
    found = {n: schedule_of(config, denoiser, val, source_prior, n) for n in SEARCHED if n < 2 ** (settings.levels - 1)}
    path = run / "shortcut.safetensors"
    tensors = dict(model.state_dict()) | as_tensors(found)
    save_checkpoint(path, Checkpoint(tensors, config, "shortcut", stage.steps, origin))
    clear_state(stage, run)
    return path


@torch.no_grad()
def leap_as_it_flows(denoiser: Denoiser) -> None:
    """Every step size starts with what the diffusion stage learnt for level 0, so that none disturbs the network."""
    sizes = denoiser.unet.class_embedding.weight
    sizes[1:] = sizes[0]


def source(noise: Tensor, prior: Tensor, weights: tuple[float, ...], rng: np.random.Generator) -> Tensor:
    """x1 = eps + w·prior; w evenly from the served range, and 0 for a tenth, so that no prior is trained too."""
    low, high = weights
    w = rng.uniform(low, high, len(noise)) * (rng.random(len(noise)) >= 0.1)
    return noise + torch.from_numpy(w.astype(np.float32)).to(noise.device).view(-1, 1, 1, 1) * prior


class Flow:
    """The denoiser as a velocity field u(x_t, t, level, tokens) of rectified flow."""

    def __init__(self, config: Config, denoiser: Denoiser) -> None:
        self.settings = config.shortcut
        self.denoiser = denoiser
        self.alpha_bar = alphas_cumprod(config.diffusion.schedule, config.diffusion.timesteps)

    def velocity(self, x: Tensor, t: NDArray[np.float64], level: NDArray[np.int64], tokens: Tensor) -> Tensor:
        """u = (2t-1)/n² x + v/n with n² = (1-t)² + t², float32; t in (0, 1], one per row like `level`."""
        n = np.hypot(1 - t, t)
        inward, keep, turn = (_rows(c, x) for c in (1 / n, (2 * t - 1) / n**2, 1 / n))
        times = torch.from_numpy(flow_timestep(self.alpha_bar, t)).float().to(x.device)
        v = self.denoiser(inward * x, times, tokens, torch.from_numpy(level).to(x.device))
        return keep * x + turn * v.float()

    def guided(self, x: Tensor, t: NDArray[np.float64], level: NDArray[np.int64], tokens: Tensor) -> Tensor:
        """Level 0 is the flow itself, which knows no guidance yet (Ho & Salimans 2022, eq. 6); other levels have it."""
        u = self.velocity(x, t, level, tokens)
        (flowing,) = np.nonzero(level == 0)
        if len(flowing):
            null = self.denoiser.null_tokens.expand(len(flowing), -1, -1)
            free = self.velocity(x[flowing], t[flowing], level[flowing], null)
            u[flowing] = free + self.settings.guidance * (u[flowing] - free)
        return u

    def two_half_steps(self, x: Tensor, t: NDArray[np.float64], k: NDArray[np.int64], tokens: Tensor) -> Tensor:
        """Mean velocity of two steps of half the size of level k from x_t: the target of one step of that level."""
        half = 0.5**k
        finer = np.where(k < self.settings.levels, k + 1, 0)
        first = self.guided(x, t, finer, tokens)
        second = self.guided(x - _rows(half, x) * first, t - half, finer, tokens)
        return (first + second) / 2


def shortcut_loss(flow: Flow, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
    """Flow matching on the first rows of the batch, self-consistency on the last (`bootstrap` of them)."""
    n = len(batch.x0)
    leaping = round(flow.settings.bootstrap * n)
    first, last = slice(n - leaping), slice(n - leaping, n)
    k = rng.integers(1, flow.settings.levels + 1, size=leaping)
    size = 0.5 ** (k - 1.0)
    t_leap = size * rng.integers(1, (1 / size).astype(np.int64) + 1)
    t = np.concatenate([1 - rng.random(n - leaping), t_leap])  # in (0, 1]
    level = np.concatenate([np.zeros(n - leaping, dtype=np.int64), k])
    x = _rows(1 - t, batch.x0) * batch.x0 + _rows(t, batch.x1) * batch.x1
    tokens = flow.denoiser.tokens(batch.embedding)
    free = torch.where(batch.dropped[first, None, None], flow.denoiser.null_tokens, tokens[first])
    predicted = flow.velocity(x, t, level, torch.cat([free, tokens[last]]))
    with torch.no_grad():
        target = flow.two_half_steps(x[last], t_leap, k, tokens[last])
    matching = (predicted - (batch.x1 - batch.x0))[first].square()
    consistency = (predicted[last] - target).square()
    total = (matching.sum() + consistency.sum()) / predicted.numel()
    return {"loss": total, "matching": matching.mean(), "consistency": consistency.mean()}


def preview(config: Config, denoiser: Denoiser, embedding: Tensor, prior: Tensor) -> list[Tensor]:
    """Normalised latents of these voices from one noise each, with 1, 2, 4 and 8 steps, [n, C, h, w] each."""
    settings = config.shortcut
    alpha_bar = alphas_cumprod(config.diffusion.schedule, config.diffusion.timesteps)
    noise = torch.randn((len(embedding), *prior.shape), generator=torch.Generator().manual_seed(0)).to(prior.device)
    network = folded_network(denoiser, embedding)
    return [
        sample(network, noise + settings.prior_weight * prior, shortcut_table(alpha_bar, [1 / n] * n),
               config.diffusion.latent_clip)
        for n in PREVIEW_STEPS if n <= 2 ** (settings.levels - 1)
    ]  # fmt: skip


def schedule_of(config: Config, denoiser: Denoiser, val: Encoded, prior: Tensor, steps: int) -> Schedule:
    """The sizes of `steps` steps that come nearest to as many as the finest trained size allows."""
    levels = config.shortcut.levels
    alpha_bar = alphas_cumprod(config.diffusion.schedule, config.diffusion.timesteps)
    embedding, noise = voices_and_noise(val, prior)
    fine = shortcut_table(alpha_bar, leaps(2 ** (levels - 1), levels)[0])
    tables = {sizes: shortcut_table(alpha_bar, sizes) for sizes in leaps(steps, levels)}
    start = noise + config.shortcut.prior_weight * prior
    return search(folded_network(denoiser, embedding), start, tables, fine, config.diffusion.latent_clip)


def _rows(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like.device).view(-1, 1, 1, 1)
