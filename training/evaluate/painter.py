"""A trained run as a painter: the networks as they were trained, sampled in torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.errors import InvalidArgument
from runtime.noise import seeded_noise
from training.arms import ARMS, GUIDANCE
from training.checkpoint import STAGES, System, load_pretrained, load_system
from training.corpus.table import Corpus, Identity
from training.data import read_portrait
from training.evaluate.protocol import Pixels
from training.loop import device_of_training
from training.prior_shift import prior_shift
from training.sampler import folded_network, guided_network, sample

STEPS = (1, 2, 4, 8, 25)
CHUNK = 32


class RunPainter:
    """One arm of a run folder. The same seed gives the noise that the runtime draws from it."""

    def __init__(self, system: System, identity: str) -> None:
        """`identity`: sha256 of what the arm consists of, see `run_identity`."""
        self.system, self.identity, self.name = system, identity, system.arm
        self.device = device_of_training()
        for module in (system.speech_encoder, system.denoiser, system.face_decoder):
            module.to(self.device)
        limit = len(system.alphas_cumprod)
        if system.arm == "shortcut":
            limit = 2 ** (system.config.shortcut.levels - 1)
        arm = ARMS[self.name]
        self.steps, self.solver = tuple(n for n in STEPS if n <= limit), arm.solvers[0]
        self.default_steps = max(n for n in self.steps if n <= arm.default_steps)
        self.prior_weight, self.prior_weights = system.prior_weight, system.prior_weights
        self.guidance = GUIDANCE if system.guidance is None else system.guidance
        self.facts: Mapping[str, Any] = {"solver": self.solver, "guidance": self.guidance}
        self._embeddings: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def paint(self, pcm: NDArray[np.float32], seeds: Sequence[int], steps: int, prior_weight: float) -> Pixels:
        """See `protocol.Painter`. Raises InvalidArgument for a weight that this arm does not serve."""
        low, high = self.prior_weights
        if not low <= prior_weight <= high:
            raise InvalidArgument(f"prior weight {prior_weight:g} is outside {low:g}..{high:g} of the {self.name} arm")
        shape = tuple(self.system.prior.shape)
        noise = torch.from_numpy(np.stack([seeded_noise(seed, shape) for seed in seeds])).to(self.device)
        embedding = torch.stack([self._embed(one) for one in pcm])
        table = self.system.table(steps, self.solver)
        parts = [
            self._draw(noise[i : i + CHUNK], embedding[i : i + CHUNK], table, prior_weight)
            for i in range(0, len(pcm), CHUNK)
        ]
        return np.concatenate(parts)

    def _draw(self, noise: Tensor, embedding: Tensor, table: Any, weight: float) -> Pixels:
        system, prior = self.system, self.system.prior.to(self.device)
        clip = system.config.diffusion.latent_clip
        if system.arm == "shortcut":
            latent = sample(folded_network(system.denoiser, embedding), noise + weight * prior, table, clip)
        else:
            shift = prior_shift(system.prior_mode, weight, prior)
            latent = sample(guided_network(system.denoiser, embedding, shift, self.guidance), noise, table, clip)
        std, mean = (value.to(self.device).view(1, -1, 1, 1) for value in (system.latent_std, system.latent_mean))
        return as_pixels(system.face_decoder(latent * std + mean))

    def _embed(self, pcm: NDArray[np.float32]) -> Tensor:
        """The embedding of one clip, float32 [E]; kept, because every row of a table hears the same clips."""
        key = hashlib.sha256(pcm.tobytes()).digest()
        if key not in self._embeddings:
            self._embeddings[key] = self.system.speech_encoder(torch.from_numpy(pcm[None]).to(self.device))[0]
        return self._embeddings[key]


def run_painters(run: Path) -> list[RunPainter]:
    """A painter for every arm that is trained, the few-step one first. Raises CheckpointInvalid where none is."""
    trained = [arm for arm in ARMS if (run / f"{arm}.safetensors").exists()] or ["auto"]
    return [RunPainter(load_system(run, arm), run_identity(run, arm)) for arm in trained]


def run_identity(run: Path, arm: str) -> str:
    """sha256 over the checkpoints that an arm paints with: every finished stage but the other arms' denoisers."""
    digest = hashlib.sha256()
    for stage in STAGES:
        path = run / f"{stage}.safetensors"
        if path.exists() and (stage == arm or stage not in ARMS):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@torch.no_grad()
def reconstructed(run: Path, corpus: Corpus, identities: Sequence[Identity]) -> Pixels:
    """The real portraits through face encoder and the decoder that serves: what any latent of this run can show."""
    checkpoint, _, encoder, _ = load_pretrained(run)
    decoder = load_system(run).face_decoder
    size = checkpoint.config.face.size
    parts = []
    for i in range(0, len(identities), CHUNK):
        pixels = np.stack([read_portrait(corpus.image_paths(one)[0], size) for one in identities[i : i + CHUNK]])
        portraits = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts.append(as_pixels(decoder(encoder(portraits)[0])))
    return np.concatenate(parts)


def as_pixels(portraits: Tensor) -> Pixels:
    """float [n, 3, H, W], −1…1 and beyond, to uint8 [n, H, W, 3], rounded as the exported decoder rounds."""
    levels = (portraits.float().clamp(-1, 1) * 127.5 + 127.5).round().byte()
    return levels.permute(0, 2, 3, 1).cpu().contiguous().numpy()
