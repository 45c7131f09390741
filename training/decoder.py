"""Stage 6: a slim face decoder for devices, on the frozen encoder's latents.

With few steps the decoder is most of the work, and most of a decoder's work lies at full resolution: the slim one has
few channels there. It learns from portraits and from the larger decoder, with a patch critic where the configuration
asks for one; reconstruction alone leaves skin and hair smooth.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from training.checkpoint import Checkpoint, encoders_hash, load_pretrained, save_checkpoint
from training.config import Config, DecoderConfig
from training.corpus.table import read_corpus
from training.data import Pairs, fingerprint, load_pairs
from training.encoded import CHUNK, Faces, encoded_faces
from training.loop import Stage, clear_state, device_of_training, run_stage
from training.losses import FeatureLoss, colour_difference, feature_loss
from training.models.face import build_slim_decoder
from training.sheets import grid

logger = logging.getLogger(__name__)

FEATURE_MATCHING = 10.0  # against the critic's own verdict, as pix2pixHD weighs them (Wang et al. 2018)


def decoder(config: Config, corpus: Path, run: Path) -> Path:
    """Trains the slim decoder; writes RUN/decoder.safetensors (averaged weights) and logs both reconstruction errors.

    Raises CheckpointInvalid, CorpusInvalid, OutputUnwritable, TrainingDiverged.
    """
    settings, key = config.decoder, fingerprint(read_corpus(corpus))
    pretrained, _, encoder, teacher = load_pretrained(run, config, key, aligned=False)
    device = device_of_training()
    train, val = (load_pairs(corpus, split, config.face.size, run / "cache") for split in ("train", "val"))
    latents, val_latents = (
        encoded_faces(pairs, split, run, encoder) for pairs, split in ((train, "train"), (val, "val"))
    )
    torch.manual_seed(config.seed)
    slim = build_slim_decoder(config)
    model = nn.ModuleDict({"decoder": slim, "critic": PatchCritic()}).to(device, memory_format=torch.channels_last)
    perceptual, perceptual_name = feature_loss(config.pretrain.feature_loss, device)
    groups = [{"params": slim.parameters(), "betas": (0.9, 0.99)}, {"params": model["critic"].parameters()}]
    optimiser = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=1e-4, betas=(0.5, 0.99))
    teacher.to(device)

    def loss(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        pair = draw(train, latents, rng, settings.batch)
        now = dataclasses.replace(settings, adversarial_weight=adversarial_weight(settings, step))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            return decoder_loss(now, model, teacher, (pair[0].to(device), pair[1].to(device)), perceptual)

    def sheet() -> Image.Image:
        latent = val_latents.latents[:8, 0].to(device)
        return grid([val.faces(range(len(latent))), teacher(latent), slim(latent)])

    origin = dataclasses.replace(pretrained.origin, parent=encoders_hash(run, "decoder"), feature_loss=perceptual_name)
    stage = Stage("decoder", config, settings.steps, model, optimiser, loss, sheet, origin, settings.ema)
    run_stage(stage, run)
    for name, module in (("larger", teacher), ("slim", slim)):
        logger.info("%s decoder, validation split: %s", name, reconstruction(module, val, val_latents, device))
    path = run / "decoder.safetensors"
    tensors = {f"decoder.{name}": value for name, value in slim.state_dict().items()}
    save_checkpoint(path, Checkpoint(tensors, config, "decoder", stage.steps, origin))
    clear_state(stage, run)
    return path


def draw(pairs: Pairs, latents: Faces, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor]:
    """Latents [batch, C, h, w] and the portraits, or mirrored portraits, they are of [batch, 3, size, size]."""
    count = pairs.portraits.shape[1]
    rows, view = rng.integers(len(pairs), size=batch), rng.integers(2 * count, size=batch)
    pixels = torch.from_numpy(pairs.portraits[rows, view % count]).permute(0, 3, 1, 2).float() / 127.5 - 1
    mirrored = torch.from_numpy(view >= count)[:, None, None, None]
    return latents.latents[rows, view], torch.where(mirrored, pixels.flip(3), pixels)


def adversarial_weight(settings: DecoderConfig, step: int) -> float:
    """None for the first 40 % of the steps, then rising over 20 %: a critic that has seen only blurs teaches noise."""
    return settings.adversarial_weight * float(np.clip((step / settings.steps - 0.4) / 0.2, 0, 1))


def decoder_loss(
    settings: DecoderConfig, model: nn.ModuleDict, teacher: nn.Module, pair: tuple[Tensor, Tensor],
    perceptual: FeatureLoss,
) -> dict[str, Tensor]:  # fmt: skip
    """MAE and perceptual loss to the portrait, MAE to the larger decoder, and the critic's part of both players."""
    latent, portrait = pair
    noisy = latent + settings.latent_noise * torch.randn_like(latent)
    with torch.no_grad():
        taught = teacher(noisy).float()
    drawn = model["decoder"](noisy).float()
    mae = (drawn - portrait).abs().mean()
    feature = perceptual(drawn, portrait).mean()
    distillation = (drawn - taught).abs().mean()
    colour = colour_difference(drawn, portrait)
    total = mae + settings.feature_weight * feature + settings.colour_weight * colour
    total = total + settings.distillation_weight * distillation
    values = {"mae": mae, "feature": feature, "colour": colour, "distillation": distillation}
    if settings.adversarial_weight:
        fooling, critic = adversarial(model["critic"], drawn, portrait)
        total = total + settings.adversarial_weight * fooling + critic
        values |= {"fooling": fooling, "critic": critic}
    return {"loss": total, **values}


def adversarial(critic: nn.Module, drawn: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The hinge losses of decoder and critic, each free of gradients for the other; feature matching in the former."""
    frozen = {name: value.detach() for name, value in critic.state_dict().items()}
    *seen, verdict = functional_call(critic, frozen, (drawn,))
    *real_features, real_verdict = critic(real)
    matching = torch.stack([(a - b.detach()).abs().mean() for a, b in zip(seen, real_features, strict=True)]).mean()
    fooling = FEATURE_MATCHING * matching - verdict.mean()
    drawn_verdict = critic(drawn.detach())[-1]
    return fooling, torch.relu(1 - real_verdict).mean() + torch.relu(1 + drawn_verdict).mean()


class PatchCritic(nn.Module):
    """Real or drawn, patch by patch: portrait [n, 3, H, W] → features layer by layer, then verdicts [n, 1, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (12, 48, 96, 128)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=1 if a == 12 else 2, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.verdict = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, portrait: Tensor) -> list[Tensor]:
        features = []
        x = nn.functional.pixel_unshuffle(portrait, 2)
        for layer in self.layers:
            x = nn.functional.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.verdict(x)]


@torch.no_grad()
def reconstruction(decode: nn.Module, pairs: Pairs, latents: Faces, device: torch.device) -> str:
    """Work per portrait (2 FLOP per multiply-add); PSNR (8-bit range, mean over portraits) and feature loss to them."""
    error, feature = [], []
    perceptual, name = feature_loss("pyramid", device)
    for rows in torch.arange(len(pairs)).split(CHUNK):
        portraits = pairs.faces(rows)
        drawn = decode(latents.latents[rows, 0].to(device)).float().cpu().clamp(-1, 1)
        error.append(((drawn - portraits) / 2).square().mean(dim=(1, 2, 3)))
        feature.append(perceptual(drawn, portraits) * len(rows))
    psnr = float((-10 * torch.log10(torch.cat(error))).mean())
    with FlopCounterMode(display=False) as counter:
        decode(latents.latents[:1, 0].to(device))
    work = counter.get_total_flops() / 1e9
    return f"{work:.2f} GFLOP, PSNR {psnr:.2f} dB, {name} {float(sum(feature)) / len(pairs):.4f} (n = {len(pairs)})"
