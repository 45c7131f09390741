"""Stage 4: speech-conditioned latent diffusion with the face prior as normalisation (SCLDM eqs. 2, 4, 5, 6)."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from runtime.errors import ConfigInvalid
from training.arms import ARMS, GUIDANCE
from training.checkpoint import Checkpoint, encoders_hash, load_pretrained, load_stage, save_checkpoint
from training.config import Config, DiffusionConfig
from training.corpus.table import read_corpus
from training.data import fingerprint, load_pairs
from training.encoded import Encoded, encoded
from training.loop import Stage, clear_state, device_of_training, run_stage
from training.models.denoiser import Denoiser
from training.prior_shift import Shift, prior_shift
from training.sampler import guided_network, sample
from training.sampling import StepTable, alphas_cumprod, step_table
from training.schedule import SEARCHED, VOICES, Schedule, as_tensors, search, spacings
from training.sheets import grid


def diffusion(config: Config, corpus: Path, run: Path) -> Path:
    """Trains the denoiser on frozen encoders; writes RUN/diffusion.safetensors (averaged weights)."""
    settings, key = config.diffusion, fingerprint(read_corpus(corpus))
    pretrained, speech, encoder, decoder = load_pretrained(run, config, key)
    face_prior = load_stage(run, "prior", config, key).tensors["prior"]
    device = device_of_training()
    train, val = (
        encoded(load_pairs(corpus, split, config.face.size, run / "cache"), split, run, speech, encoder)
        for split in ("train", "val")
    )
    mean, std = (pretrained.tensors[key].view(1, -1, 1, 1).to(device) for key in ("latent_mean", "latent_std"))
    torch.manual_seed(config.seed)
    model = nn.ModuleDict({"denoiser": Denoiser(config)}).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=1e-4)
    alpha_bar = torch.from_numpy(alphas_cumprod(settings.schedule, settings.timesteps)).float().to(device)
    shift = prior_shift(settings.prior_mode, settings.prior_weight, face_prior.to(device))

    def loss(_: int, rng: np.random.Generator) -> dict[str, Tensor]:
        latent, embedding, dropped = train.draw(rng, settings.batch, settings.condition_dropout, device)
        batch = (latent - mean) / std, embedding, dropped
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            return diffusion_loss(config, model["denoiser"], batch, alpha_bar, shift)

    decoder.to(device)

    def sheet() -> Image.Image:
        drawn = preview(settings, model["denoiser"], val, shift)
        return grid([decoder(val.latents[:8, 0].to(device)), *(decoder(z * std + mean) for z in drawn)])

    origin = dataclasses.replace(pretrained.origin, parent=encoders_hash(run, "diffusion"))
    stage = Stage("diffusion", config, settings.steps, model, optimiser, loss, sheet, origin, settings.ema)
    run_stage(stage, run)
    found = {n: schedule_of(config, model["denoiser"], val, shift, n) for n in SEARCHED if n < settings.timesteps}
    path = run / "diffusion.safetensors"
    tensors = dict(model.state_dict()) | as_tensors(found)
    save_checkpoint(path, Checkpoint(tensors, config, "diffusion", stage.steps, origin))
    clear_state(stage, run)
    return path


def diffusion_loss(
    config: Config, denoiser: Denoiser, batch: tuple[Tensor, Tensor, Tensor], alpha_bar: Tensor, shift: Shift
) -> dict[str, Tensor]:
    """Eq. 6 with the shifted input of eq. 2; `dropped` rows learn the unconditional score for guidance."""
    latent, embedding, dropped = batch
    scale, offset = shift
    t = torch.randint(len(alpha_bar), (len(latent),), device=latent.device)
    noise = torch.randn_like(latent)
    alpha = alpha_bar[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1)
    shifted = scale * (alpha * latent + sigma * noise) + offset  # eq. 4, then eq. 2
    target = noise if config.diffusion.prediction == "epsilon" else alpha * noise - sigma * latent
    tokens = torch.where(dropped[:, None, None], denoiser.null_tokens, denoiser.tokens(embedding))
    return {"loss": mse_loss(denoiser(shifted, t, tokens).float(), target)}


def preview(settings: DiffusionConfig, denoiser: Denoiser, val: Encoded, shift: Shift) -> list[Tensor]:
    """Normalised latents for eight validation voices: what their voices give with two seeds, [8, C, h, w] each."""
    alpha_bar = alphas_cumprod(settings.schedule, settings.timesteps)
    table = step_table(alpha_bar, settings.preview_steps, "dpmpp_2m", settings.prediction)
    shape, device = val.latents[:8, 0].shape, shift[1].device
    network = guided_network(denoiser, val.embeddings[:8, 0].to(device), shift, GUIDANCE)
    noises = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device) for seed in range(2)]
    return [sample(network, noise, table, settings.latent_clip) for noise in noises]


def schedule_of(config: Config, denoiser: Denoiser, val: Encoded, shift: Shift, steps: int) -> Schedule:
    """The spacing of `steps` timesteps that comes nearest to fifty, for DPM-Solver++ with guidance."""
    settings = config.diffusion
    alpha_bar = alphas_cumprod(settings.schedule, settings.timesteps)
    embedding, noise = voices_and_noise(val, shift[1])

    def table(count: int, spacing: float) -> StepTable:
        return step_table(alpha_bar, count, ARMS["diffusion"].solvers[0], settings.prediction, spacing)

    fine = table(min(50, settings.timesteps), 1.0)
    guided = guided_network(denoiser, embedding, shift, GUIDANCE)
    candidates = {}
    for spacing in spacings():
        with contextlib.suppress(ConfigInvalid):  # of few timesteps, not every spacing has so many steps
            candidates[spacing] = table(steps, *spacing)
    return search(guided, noise, candidates, fine, settings.latent_clip)


def voices_and_noise(val: Encoded, like: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of the first validation voices and one noise for each, on the device of `like`."""
    embedding = val.embeddings[:VOICES, 0].to(like.device)
    shape = (len(embedding), *val.latents.shape[2:])
    return embedding, torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device)
