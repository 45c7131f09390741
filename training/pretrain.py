"""Stage 1: collaborative contrastive + reconstruction pre-training (SCLDM eq. 1)."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchaudio.functional import mask_along_axis_iid

from training.checkpoint import Checkpoint, save_checkpoint
from training.config import Config, PretrainConfig
from training.corpus.table import read_corpus
from training.data import Pairs, load_pairs, origin_of
from training.encoded import CHUNK
from training.evaluate import metrics
from training.loop import Stage, clear_state, device_of_training, run_stage
from training.losses import FeatureLoss, colour_difference, contrastive, feature_loss
from training.models.face import build_face_decoder, build_face_encoder
from training.models.speech import build_speech_encoder
from training.sheets import grid

logger = logging.getLogger(__name__)


def pretrain(config: Config, corpus: Path, run: Path) -> Path:
    """Trains speech encoder, face encoder and face decoder together; writes RUN/pretrain.safetensors.

    Raises CorpusInvalid, CheckpointInvalid, OutputUnwritable.
    """
    train, val = (load_pairs(corpus, split, config.face.size, run / "cache") for split in ("train", "val"))
    torch.manual_seed(config.seed)
    device = device_of_training()
    model = nn.ModuleDict(
        {
            "speech": build_speech_encoder(config),
            "face_encoder": build_face_encoder(config),
            "face_decoder": build_face_decoder(config),
            "temperature": LogScale(),
        }
    ).to(device, memory_format=torch.channels_last)
    perceptual, perceptual_name = feature_loss(config.pretrain.feature_loss, device)
    faces = [p for key in ("face_encoder", "face_decoder") for p in model[key].parameters()]
    voices = [p for key in ("speech", "temperature") for p in model[key].parameters()]
    rates = [{"params": faces, "lr": config.pretrain.lr_face}, {"params": voices, "lr": config.pretrain.lr_speech}]
    optimiser = torch.optim.AdamW(rates, weight_decay=config.pretrain.weight_decay)

    def loss(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        settings = config.pretrain
        paired = step % settings.contrastive_every == 0
        rows = train.draw(rng, settings.batch if paired else settings.reconstruct)
        speech = train.speech(rows, rng).to(device) if paired else None
        return pretrain_loss(config, model, train.faces(rows, rng).to(device), speech, perceptual)

    def sheet() -> Image.Image:
        portraits = val.faces(range(min(8, len(val)))).to(device)
        return grid([portraits, model["face_decoder"](model["face_encoder"](portraits)[0])])

    origin = origin_of(read_corpus(corpus), perceptual_name)
    stage = Stage("pretrain", config, config.pretrain.steps, model, optimiser, loss, sheet, origin)
    run_stage(stage, run)
    mean, std = latent_statistics(model["face_encoder"], train, device)
    logger.info("retrieval of the portrait from the voice, validation split: %s", retrieval(model, val, device))
    tensors = dict(model.state_dict().items()) | {"latent_mean": mean, "latent_std": std}
    path = run / "pretrain.safetensors"
    save_checkpoint(path, Checkpoint(tensors, config, "pretrain", stage.steps, origin))
    clear_state(stage, run)
    return path


class LogScale(nn.Module):
    """CLIP's learned temperature, stored as the logarithm of its inverse; starts at 1/0.07."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))


def pretrain_loss(
    config: Config, model: nn.ModuleDict, portraits: Tensor, pcm: Tensor | None, perceptual: FeatureLoss
) -> dict[str, Tensor]:
    """Eq. 1 on a batch of pairs, or its reconstruction alone where there is no speech.

    Only the first `reconstruct` portraits are decoded, which is where the time goes.
    """
    settings = config.pretrain
    with torch.autocast(portraits.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        latent, face = model["face_encoder"](portraits)
        some = latent[: settings.reconstruct]
        decoded = model["face_decoder"](some + settings.latent_noise * torch.randn_like(some))
    target = portraits[: settings.reconstruct]
    mae = (decoded.float() - target).abs().mean()
    feature = perceptual(decoded.float(), target).mean()
    colour = colour_difference(decoded.float(), target)
    total = settings.reconstruction_weight * (mae + settings.feature_weight * feature + settings.colour_weight * colour)
    values = {"mae": mae, "feature": feature, "colour": colour}
    if pcm is not None:
        pull, hit = _pull(config, model, face, pcm)
        total = total + settings.contrastive_weight * pull
        values |= {"contrastive": pull, "top1": hit}
    return {"loss": total, **values}


def _pull(config: Config, model: nn.ModuleDict, face: Tensor, pcm: Tensor) -> tuple[Tensor, Tensor]:
    """The contrastive loss, and the share of voices whose nearest face of the batch is theirs."""
    spectrogram = model["speech"].frontend(pcm)  # in float32: bfloat16 would bury quiet bands
    with torch.autocast(pcm.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        speech = model["speech"].embed(masked(spectrogram, config.pretrain))
    pull, logits = contrastive(speech.float(), face.float(), model["temperature"].value)
    return pull, (logits.argmax(dim=1) == torch.arange(len(logits), device=logits.device)).float().mean()


def masked(spectrogram: Tensor, settings: PretrainConfig) -> Tensor:
    """Two time and two frequency masks per clip, filled with the mean (SpecAugment, Park et al. 2019).

    Without them a few thousand clips are learnt by heart instead of what voices share with faces.
    """
    for longest, axis in ((settings.mask_frames, 2), (settings.mask_bands, 3)):
        for _ in range(2 if longest else 0):
            spectrogram = mask_along_axis_iid(spectrogram, longest, float(spectrogram.detach().mean()), axis)
    return spectrogram


@torch.no_grad()
def latent_statistics(encoder: nn.Module, pairs: Pairs, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per latent channel over (up to 2,000) training portraits, float32 [C] each."""
    latents = [
        encoder(pairs.faces(rows).to(device))[0].cpu()
        for rows in torch.arange(min(len(pairs), 2000)).split(CHUNK)
    ]  # fmt: skip
    stacked = torch.cat(latents)
    return stacked.mean(dim=(0, 2, 3)), stacked.std(dim=(0, 2, 3))


@torch.no_grad()
def retrieval(model: nn.ModuleDict, pairs: Pairs, device: torch.device) -> str:
    """R@1 and R@10 of the true portrait among all of the split, with gallery size and chance."""
    chunks = torch.arange(len(pairs)).split(CHUNK)
    face = torch.cat([model["face_encoder"](pairs.faces(rows).to(device))[1] for rows in chunks])
    speech = torch.cat([model["speech"](pairs.speech(rows).to(device)) for rows in chunks])
    return retrieval_line(speech, face)


def retrieval_line(speech: Tensor, face: Tensor) -> str:
    """R@1 and R@10 of face i from voice i among all faces, with gallery size and chance; embeddings [n, E]."""
    found = metrics.retrieval(*(side.double().cpu().numpy() for side in (speech, face)))
    chance = metrics.chance(len(face))
    return (
        f"R@1 {found[1]:.1f} %, R@10 {found[10]:.1f} % "
        f"(gallery {len(face)}, chance {chance[1]:.1f} and {chance[10]:.1f} %)"
    )
