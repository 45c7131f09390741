"""Seeded noise, defined to the bit: the same seed is the same face on every backend, in every batch, in every release.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11) with key (seed, 0) gives 64-bit
words; Box-Muller in float64 turns them into a standard normal. Nothing here uses numpy's distributions, whose streams
may change between releases; the raw words of a bit generator may not. A second implementation needs only this text:

- words w0, w1, …: the four outputs of counter 1, then those of counter 2, and so on (the counter is 256 bits wide)
- u = ((w[2i] >> 11) + 1) · 2⁻⁵³ in (0, 1],  v = (w[2i+1] >> 11) · 2⁻⁵³ in [0, 1)
- z[2i] = √(−2 ln u) · cos 2πv,  z[2i+1] = √(−2 ln u) · sin 2πv,  rounded to float32, in C order of the shape
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MAX_SEED = 2**63 - 1

_UNIT = 2.0**-53


def seeded_noise(seed: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Standard normal noise, float32 of `shape`, a pure function of `seed` (0..MAX_SEED, checked by the caller).

    A longer shape continues the shorter one's values, so noise depends on the element's index alone.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    words = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64)).random_raw(2 * pairs).reshape(pairs, 2) >> 11
    radius = np.sqrt(-2.0 * np.log((words[:, 0].astype(np.float64) + 1.0) * _UNIT))
    angle = words[:, 1].astype(np.float64) * (2.0 * math.pi * _UNIT)
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normal.reshape(-1)[:count].reshape(tuple(shape)).astype(np.float32)
