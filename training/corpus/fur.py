"""Short hair grown from the scalp as shells: copies of the scalp pushed outwards, each keeping only the strands that
reach so far.

The technique is Lengyel et al., "Real-Time Fur over Arbitrary Surfaces" (2001). It gives the cropped and curly styles
that the data folder lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.corpus import raster
from training.corpus.head import Head

# name: (length in dm, shells, curl size in texture cycles, tiles per UV unit, how ragged the surface is)
GROWTH = {
    "crop": (0.11, 8, 75.0, 7.0, 0.5),
    "beard": (0.10, 7, 65.0, 8.0, 0.55),
    "curls": (0.26, 12, 20.0, 7.0, 0.6),
    "afro": (0.55, 16, 26.0, 6.0, 0.5),
}


@dataclass(frozen=True)
class Fur:
    """Shells over the scalp: vertices are `layers` copies of the scalp's skin vertices `own`, inner first."""

    own: np.ndarray  # skin vertices of the scalp
    reach: np.ndarray  # [layers * len(own)] dm from the skin
    tris: np.ndarray
    uvs: np.ndarray
    caster: np.ndarray  # triangles of one middle shell
    cut: np.ndarray
    gain: float
    brightness: np.ndarray  # darker at the roots
    texture: np.ndarray

    def points(self, skin: np.ndarray, tris: np.ndarray, length: float = 1.0) -> np.ndarray:
        """Model-space vertices on a blended skin [V,3]; length: share of the full growth."""
        normals = raster.vertex_normals(skin, tris)[self.own]
        layers = len(self.reach) // len(self.own)
        return np.tile(skin[self.own], (layers, 1)) + np.tile(normals, (layers, 1)) * (self.reach * length)[:, None]


def grow(name: str, head: Head, scalp: np.ndarray) -> Fur:
    """The shells of one style. scalp [V]: distance inside the border of growth in dm, per skin vertex."""
    length, layers, curl, tiles, ragged = GROWTH[name]
    curly = name in {"curls", "afro"}
    rows = np.flatnonzero((scalp[head.skin.tris] > -0.08).all(1))
    own, compact = np.unique(head.skin.tris[rows], return_inverse=True)
    compact = compact.reshape(-1, 3).astype(np.int32)
    full = np.clip((scalp[own] + 0.08) / (0.12 + 0.6 * length), 0, 1) ** 0.6  # shorter towards the hairline
    heights = (np.arange(layers) + 0.5) / layers
    reach = np.concatenate([length * h * (0.15 + 0.85 * full) for h in heights])
    edge = np.clip((0.1 if curly else 0.5) - scalp[own] / 0.10, 0, 1)
    cut = np.concatenate([0.12 + (1 - ragged) * 0.25 * h + ragged * h**1.5 * 0.8 + 0.5 * edge for h in heights])
    tris = np.concatenate([compact + k * len(own) for k in range(layers)]).astype(np.int32)
    angle = np.arange(layers) * (2.4 if curly else 0.0)  # strands wind like springs
    wind = np.stack([np.cos(angle), np.sin(angle)], -1) * np.linspace(0.0, 0.35, layers)[:, None] / curl
    uvs = np.concatenate([head.skin.uvs[rows] * tiles + w for w in wind]).astype(np.float32)
    brightness = np.repeat(0.30 + 0.85 * heights, len(own))
    middle = compact + (layers // 2) * len(own)
    return Fur(
        own, reach.astype(np.float32), tris, uvs, middle, cut.astype(np.float32), 5.0, brightness, _curl_texture(curl)
    )


def _curl_texture(cycles: float, size: int = 256) -> np.ndarray:
    """[size,size,4]: alpha is how far the strand at a texel reaches (0..1, uniform), rgb its brightness around 1."""
    rng = np.random.Generator(np.random.Philox(int(cycles * 10)))
    fy, fx = np.fft.fftfreq(size)[:, None] * size, np.fft.fftfreq(size)[None] * size
    band = np.exp(-(((np.hypot(fx, fy) - cycles) / (0.5 * cycles)) ** 2))
    fields = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) * band).real for _ in range(2)]
    rank = np.argsort(np.argsort(fields[0].ravel())).reshape(size, size) / size**2
    bright = np.clip(0.75 + 0.5 * rank + 0.15 * fields[1] / fields[1].std(), 0.4, 1.7)
    return np.stack([bright, bright, bright, rank], -1).astype(np.float32)
