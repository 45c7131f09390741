"""What the frozen encoders make of a split, computed once and kept in RUN/cache under the hash of their weights.

The stages after pre-training then touch neither pictures nor sound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from training.checkpoint import encoders_hash, write_tensors
from training.data import Pairs
from training.loop import device_of_training

WINDOWS = 6
CHUNK = 64


@dataclass(frozen=True)
class Faces:
    """All V portraits and mirrored portraits of n identities, portraits first.

    latents: float32 [n, V, C, h, w], as the face encoder gives them; embeddings: float32 [n, V, E], unit.
    """

    latents: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Encoded:
    """latents float32 [n, V, C, h, w] (V portraits and mirrors), embeddings float32 [n, W, E] (W windows of speech)."""

    latents: Tensor
    embeddings: Tensor

    def draw(
        self, rng: np.random.Generator, batch: int, dropout: float, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A training batch on the device: latents [batch, C, h, w], embeddings [batch, E], which rows lose their voice.

        Any view of the face goes with any window of the voice.
        """
        views, windows = self.latents.shape[1], self.embeddings.shape[1]
        rows, view, window = (
            torch.from_numpy(rng.integers(k, size=batch)) for k in (len(self.latents), views, windows)
        )
        dropped = torch.from_numpy(rng.random(batch) < dropout)
        return self.latents[rows, view].to(device), self.embeddings[rows, window].to(device), dropped.to(device)


def encoded(pairs: Pairs, split: str, run: Path, speech: nn.Module, encoder: nn.Module) -> Encoded:
    """Both sides of a split, by the encoders that `training.checkpoint.load_pretrained` gives."""
    return Encoded(encoded_faces(pairs, split, run, encoder).latents, encoded_voices(pairs, split, run, speech))


@torch.no_grad()
def encoded_faces(pairs: Pairs, split: str, run: Path, encoder: nn.Module) -> Faces:
    """Latents and embeddings of every portrait and its mirror image."""
    device = device_of_training()

    def encode(rows: Tensor) -> list[Tensor]:
        stacked = torch.from_numpy(pairs.portraits[rows.numpy()]).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        both = torch.cat([stacked, stacked.flip(4)], dim=1)
        views = [encoder(both[:, k].to(device)) for k in range(both.shape[1])]
        return [torch.stack(parts, dim=1).cpu() for parts in zip(*views, strict=True)]

    encoder.to(device)
    path = run / "cache" / f"{split}-faces-{encoders_hash(run, 'prior')[:12]}.safetensors"
    return Faces(**_kept(path, ("latents", "embeddings"), len(pairs), encode))


@torch.no_grad()
def encoded_voices(pairs: Pairs, split: str, run: Path, speech: nn.Module) -> Tensor:
    """Embeddings of several windows of speech, float32 [n, W, E]: the one the runtime would cut first, then others."""
    device = device_of_training()

    def encode(rows: Tensor) -> list[Tensor]:
        rng = np.random.default_rng([int(rows[0])])
        windows = [pairs.speech(rows, None if w == 0 else rng) for w in range(WINDOWS)]
        return [torch.stack([speech(w.to(device)).cpu() for w in windows], dim=1)]

    speech.to(device)
    path = run / "cache" / f"{split}-voices{WINDOWS}-{encoders_hash(run, 'diffusion')[:12]}.safetensors"
    return _kept(path, ("embeddings",), len(pairs), encode)["embeddings"]


def _kept(
    path: Path, names: tuple[str, ...], count: int, encode: Callable[[Tensor], list[Tensor]]
) -> dict[str, Tensor]:
    """The tensors of a cache file; where it is missing or damaged they are made anew, `CHUNK` rows at a time."""
    with contextlib.suppress(OSError, SafetensorError):
        kept = load_file(path)
        if all(name in kept and len(kept[name]) == count for name in names):
            return kept
    bar = tqdm(torch.arange(count).split(CHUNK), f"encode {path.stem}", mininterval=5, ncols=110)
    columns = zip(*(encode(rows) for rows in bar), strict=True)
    made = {name: torch.cat(column) for name, column in zip(names, columns, strict=True)}
    write_tensors(path, made)
    return made
