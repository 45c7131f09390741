"""Stage 3: the statistical face prior, mean of face-encoder latents over sex-balanced faces (SCLDM eq. 3, table 1)."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpoint import Checkpoint, encoders_hash, load_pretrained, save_checkpoint
from training.config import Config
from training.corpus.table import read_corpus
from training.data import Pairs, fingerprint, load_pairs
from training.encoded import CHUNK
from training.loop import device_of_training

logger = logging.getLogger(__name__)


def prior(config: Config, corpus: Path, run: Path) -> Path:
    """Writes RUN/prior.safetensors with the prior of the largest count and the table of distances between counts."""
    pretrained, _, encoder, _ = load_pretrained(run, config, fingerprint(read_corpus(corpus)), aligned=False)
    train = load_pairs(corpus, "train", config.face.size, run / "cache")
    device = device_of_training()
    latents = normalised_latents(encoder.to(device), train, pretrained.tensors, device)
    estimates = [(n, estimate(latents, balanced(train, n, config.seed))) for n in reachable(config.prior.counts, train)]
    for line in convergence_table(estimates):
        logger.info(line)
    origin = dataclasses.replace(pretrained.origin, parent=encoders_hash(run, "prior"))
    tensors = {"prior": estimates[-1][1], "count": torch.tensor(estimates[-1][0])}
    path = run / "prior.safetensors"
    save_checkpoint(path, Checkpoint(tensors, config, "prior", 0, origin))
    return path


@torch.no_grad()
def normalised_latents(encoder: nn.Module, pairs: Pairs, statistics: dict[str, Tensor], device: torch.device) -> Tensor:
    """Latents of every first portrait, (latent − mean) / std per channel, float32 [n, C, h, w]."""
    mean, std = (statistics[key].view(1, -1, 1, 1) for key in ("latent_mean", "latent_std"))
    rows = torch.arange(len(pairs)).split(CHUNK)
    return torch.cat([(encoder(pairs.faces(r).to(device))[0].cpu() - mean) / std for r in rows])


def reachable(counts: tuple[int, ...], pairs: Pairs) -> list[int]:
    """The configured counts that the corpus can balance between the sexes, and the largest count it can."""
    women = sum(identity.sex == "F" for identity in pairs.identities)
    most = 2 * min(women, len(pairs) - women)
    if not most:
        logger.warning("all faces of the corpus are of one sex: the prior cannot be balanced")
        most = len(pairs)
    return sorted({*(n for n in counts if n < most), min(most, max(counts))})


def balanced(pairs: Pairs, count: int, seed: int) -> list[int]:
    """Rows of `count` faces, half of each sex; smaller counts are the beginning of larger ones."""
    order = np.random.default_rng([seed, 2]).permutation(len(pairs))
    women = [int(i) for i in order if pairs.identities[i].sex == "F"]
    men = [int(i) for i in order if pairs.identities[i].sex == "M"]
    if not women or not men:
        return [int(i) for i in order[:count]]
    return women[: count // 2] + men[: count - count // 2]


def estimate(latents: Tensor, rows: list[int]) -> Tensor:
    """Eq. 3: the mean latent of these faces, float32 [C, h, w]."""
    return latents[rows].mean(dim=0)


def convergence_table(estimates: list[tuple[int, Tensor]]) -> list[str]:
    """Table 1 for this corpus: Euclidean distance between the priors of successive counts."""
    lines = ["faces      distance to the prior of fewer faces", f"{estimates[0][0]:>6}     -"]
    for (_, before), (n, now) in itertools.pairwise(estimates):
        lines.append(f"{n:>6}     {float((now - before).norm()):.3f}")
    return lines
