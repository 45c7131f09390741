"""Stage 3: speech-conditioned latent diffusion with the face prior as normalisation (SCLDM eqs. 2, 4, 5, 6).

The encoders are frozen, so their outputs are computed once: latents of every portrait and its mirror, embeddings of
several windows of speech. Training itself then touches neither pictures nor sound.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm import tqdm

from training.checkpoint import Checkpoint, load_pretrained, load_stage, pretrain_hash, save_checkpoint, write_tensors
from training.config import Config, DiffusionConfig
from training.corpus.table import read_corpus
from training.data import Pairs, fingerprint, load_pairs
from training.loop import Stage, clear_state, device_of_training, run_stage
from training.models.denoiser import Denoiser
from training.pretrain import CHUNK
from training.prior_shift import Shift, prior_shift
from training.sampler import guided_network, sample
from training.sampling import StepTable, alphas_cumprod, step_table
from training.schedule import SEARCHED, VOICES, Schedule, as_tensors, search, spacings
from training.sheets import grid

WINDOWS = 6
PREVIEW_GUIDANCE = 2.0


@dataclass(frozen=True)
class Encoded:
    """latents float32 [n, V, C, h, w] (V portraits and mirrors), embeddings float32 [n, W, E] (W windows of speech)."""

    latents: Tensor
    embeddings: Tensor


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
        rows = torch.from_numpy(rng.integers(len(train.latents), size=settings.batch))
        view, window = (torch.from_numpy(rng.integers(k, size=settings.batch))
                        for k in (train.latents.shape[1], train.embeddings.shape[1]))  # fmt: skip
        latent = ((train.latents[rows, view]).to(device) - mean) / std
        embedding = train.embeddings[rows, window].to(device)
        dropped = torch.from_numpy(rng.random(settings.batch) < settings.condition_dropout).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            return diffusion_loss(config, model["denoiser"], (latent, embedding, dropped), alpha_bar, shift)

    decoder.to(device)

    def sheet() -> Image.Image:
        drawn = preview(settings, model["denoiser"], val, shift)
        return grid([decoder(val.latents[:8, 0].to(device)), *(decoder(z * std + mean) for z in drawn)])

    origin = dataclasses.replace(pretrained.origin, parent=pretrain_hash(run))
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
    network = guided_network(denoiser, val.embeddings[:8, 0].to(device), shift, PREVIEW_GUIDANCE)
    noises = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device) for seed in range(2)]
    return [sample(network, noise, table, settings.latent_clip) for noise in noises]


def schedule_of(config: Config, denoiser: Denoiser, val: Encoded, shift: Shift, steps: int) -> Schedule:
    """The spacing of `steps` timesteps that comes nearest to fifty, for DPM-Solver++ with guidance."""
    settings = config.diffusion
    alpha_bar = alphas_cumprod(settings.schedule, settings.timesteps)
    embedding, noise = voices_and_noise(val, shift[1])

    def table(count: int, spacing: float) -> StepTable:
        return step_table(alpha_bar, count, "dpmpp_2m", settings.prediction, spacing)

    fine = table(min(50, settings.timesteps), 1.0)
    guided = guided_network(denoiser, embedding, shift, PREVIEW_GUIDANCE)
    return search(guided, noise, {c: table(steps, *c) for c in spacings()}, fine, settings.latent_clip)


def voices_and_noise(val: Encoded, like: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of the first validation voices and one noise for each, on the device of `like`."""
    embedding = val.embeddings[:VOICES, 0].to(like.device)
    shape = (len(embedding), *val.latents.shape[2:])
    return embedding, torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device)


@torch.no_grad()
def encoded(pairs: Pairs, split: str, run: Path, speech: nn.Module, encoder: nn.Module) -> Encoded:
    """The frozen encoders' outputs for a split, cached under the hash of the pretrain checkpoint."""
    path = run / "cache" / f"{split}-encoded-{pretrain_hash(run)[:12]}.safetensors"
    with contextlib.suppress(OSError, SafetensorError):  # missing or damaged: made anew
        return Encoded(**load_file(path))
    device = device_of_training()
    speech, encoder = speech.to(device), encoder.to(device)
    latents, embeddings = [], []
    for rows in tqdm(torch.arange(len(pairs)).split(CHUNK), f"encode {split}", mininterval=5, ncols=110):
        rng = np.random.default_rng([int(rows[0])])
        latents.append(_views(pairs, rows, encoder, device))
        windows = [pairs.speech(rows, None if w == 0 else rng) for w in range(WINDOWS)]
        embeddings.append(torch.stack([speech(w.to(device)).cpu() for w in windows], dim=1))
    made = Encoded(torch.cat(latents), torch.cat(embeddings))
    write_tensors(path, {"latents": made.latents, "embeddings": made.embeddings})
    return made


def _views(pairs: Pairs, rows: Tensor, encoder: nn.Module, device: torch.device) -> Tensor:
    stacked = torch.from_numpy(pairs.portraits[rows.numpy()]).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    both = torch.cat([stacked, stacked.flip(4)], dim=1)
    return torch.stack([encoder(both[:, k].to(device))[0].cpu() for k in range(both.shape[1])], dim=1)
