"""How near the portraits of one precision are to those of another, and the gate a variant has to pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.portrait import ALIKE_INT8_DB, psnr

if TYPE_CHECKING:
    from calibration.judge import Judge, Readings

Floats = NDArray[np.float64]

SCALES = 3
"""Of the perceptual distance; a portrait must be at least 2^SCALES pixels wide."""

WITHIN_YEARS = 5.0  # the judge itself is wrong by 4.6 years on renders it has not seen
WITHIN_DEVIATIONS = 0.5
FEW = 0.01
"""The part of pairs that may lie below a limit that the mean has to reach."""


@dataclass(frozen=True)
class Drawn:
    """n portraits, images uint8 [n, H, W, 3], and the way to them, latents float32 [n, steps + 1, C, h, w], of which
    the first is the seeded noise.
    """

    images: NDArray[np.uint8]
    latents: NDArray[np.float32]


@dataclass(frozen=True)
class Quality:
    """What a comparison of n pairs found, an array [n] or [steps] each.

    `psnr` in dB; `cosine` of the judge's features; `perceptual`: see `pyramid_distance`. `sex`, `age` and `attributes`:
    per cent of pairs (of pairs and attributes) that agree. `kid`: × 1000, see `kid`. `step_errors`: of the latent after
    each step, relative to the way the sampler has come from the noise; `plain_errors`: relative to the latent itself.
    """

    psnr: Floats
    cosine: Floats
    perceptual: Floats
    sex: float
    age: float
    attributes: float
    kid: float
    step_errors: Floats
    plain_errors: Floats

    @property
    def pairs(self) -> int:
        """How many portraits were compared."""
        return len(self.psnr)

    @property
    def growth(self) -> float:
        """How much the error grows from one step to the next at most; 0 where there is none."""
        before, after = self.step_errors[:-1], self.step_errors[1:]
        grown = [b / a if a > 0 else (np.inf if b > 0 else 0.0) for a, b in zip(before, after, strict=True)]
        return float(max(grown, default=0.0))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, raw values included."""
        places = {"psnr": 2, "cosine": 4, "perceptual": 4, "step_errors": 5, "plain_errors": 5}
        told: dict[str, Any] = {name: [round(float(x), n) for x in getattr(self, name)] for name, n in places.items()}
        return told | {
            name: round(float(getattr(self, name)), 3) for name in ("sex", "age", "attributes", "kid", "growth")
        }


@dataclass(frozen=True)
class Gate:
    """What a variant has to reach against float32. `psnr` in dB and `cosine`: the mean, and all but FEW of the pairs;
    `agreement`: per cent, of sex, age and attributes each; `growth`: see `Quality.growth`; `pairs`: compared at least.
    """

    psnr: float = ALIKE_INT8_DB
    cosine: float = 0.98
    agreement: float = 98.0
    growth: float = 1.5
    pairs: int = 256

    def misses(self, found: Quality) -> list[str]:
        """A sentence for each thing that is missed, empty for a variant that passes. What is not a number is missed."""
        said = []
        if found.pairs < self.pairs:
            said.append(f"{found.pairs} pairs of other voices were compared, {self.pairs} are needed")
        if not found.pairs:
            return said
        for name, unit, limit in (("psnr", " dB", self.psnr), ("cosine", "", self.cosine)):
            values: Floats = getattr(found, name)
            mean, below = float(np.mean(values)), float(np.mean(~(values >= limit)))
            if not mean >= limit or below > FEW:
                said.append(
                    f"{name} is {mean:.4g}{unit} on average and below {limit:g}{unit} in {100 * below:.1f} % of the "
                    f"pairs; it must reach {limit:g}{unit} on average and in all but {100 * FEW:g} %"
                )
        for name in ("sex", "age", "attributes"):
            value = getattr(found, name)
            if not value >= self.agreement:
                said.append(f"{name}: {value:.1f} % agree, {self.agreement:g} % are needed")
        if not found.growth <= self.growth:
            said.append(
                f"a step's error is {found.growth:.2f} times that of the step before, at most {self.growth:g} may be"
            )
        return said


def compare(reference: Drawn, candidate: Drawn, judge: Judge) -> Quality:
    """Hold portraits against those of the same voices and seeds in float32."""
    count = len(reference.images)
    steps = reference.latents.shape[1] - 1
    if not count:
        none = np.zeros(0)
        return Quality(none, none, none, 0.0, 0.0, 0.0, 0.0, np.zeros(steps), np.zeros(steps))
    pairs = list(zip(reference.images, candidate.images, strict=True))
    a, b = judge.read(reference.images), judge.read(candidate.images)
    return Quality(
        np.array([psnr(x, y) for x, y in pairs]),
        cosine(a.features, b.features),
        np.array([pyramid_distance(x, y) for x, y in pairs]),
        100.0 * float(np.mean((a.male > 0.5) == (b.male > 0.5))),
        100.0 * float(np.mean(np.abs(a.age - b.age) <= WITHIN_YEARS)),
        _attributes(a, b),
        kid(a.features, b.features),
        *_errors(reference.latents, candidate.latents),
    )


def cosine(a: Floats, b: Floats) -> Floats:
    """Of each pair of rows: [n, F], [n, F] → [n]; two rows of nothing are alike."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(lengths > 0, np.sum(a * b, axis=1) / np.where(lengths > 0, lengths, 1.0), 1.0)


def pyramid_distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """A stand-in for LPIPS that needs no network: the mean distance of Laplacian pyramids (Burt and Adelson 1983) of
    images 0…1 [H, W, 3], each scale with half the weight of the finer one. 0 for equal images.
    """
    x, y = a.astype(np.float64) / 255.0, b.astype(np.float64) / 255.0
    difference, total = x - y, 0.0  # a pyramid is linear, so that of the difference is the difference of both
    for scale in range(SCALES):
        small = _halved(difference)
        band = difference - _doubled(small, difference.shape)
        total += 2.0**-scale * float(np.mean(np.abs(band)))
        difference = small
    return total + 2.0**-SCALES * float(np.mean(np.abs(difference)))


def kid(a: Floats, b: Floats) -> float:
    """Kernel Inception Distance (Bińkowski et al. 2018) × 1000 of two sets of features [n, F] whose rows are pairs: the
    unbiased MMD² with the kernel (x·y/F + 1)³, pairs left out, which would pull it below 0. 0 for equal sets, and under
    two rows.
    """
    count = len(a)
    if count < 2:
        return 0.0

    def mean(x: Floats, y: Floats) -> float:
        values = (x @ y.T / x.shape[1] + 1.0) ** 3
        return float((values.sum() - np.trace(values)) / (count * (count - 1)))

    return 1000.0 * (mean(a, a) + mean(b, b) - 2.0 * mean(a, b))


def _attributes(a: Readings, b: Readings) -> float:
    """Per cent of pairs and attributes whose readings differ by at most half the attribute's spread in `a`."""
    spread = a.attributes.std(axis=0)
    return 100.0 * float(np.mean(np.abs(a.attributes - b.attributes) <= WITHIN_DEVIATIONS * spread))


def _errors(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Mean error of the latents after each step [steps], relative to the way from the noise, and to the latent itself.

    Early latents are mostly the noise that both share: relative to them an error looks small that is not.
    """
    count, steps = reference.shape[0], reference.shape[1]
    a, b = (x.astype(np.float64).reshape(count, steps, -1) for x in (reference, candidate))
    error, way, size = (np.linalg.norm(x, axis=2)[:, 1:] for x in (b - a, a - a[:, :1], a))
    tiny = np.finfo(np.float64).tiny
    return (error / np.maximum(way, tiny)).mean(axis=0), (error / np.maximum(size, tiny)).mean(axis=0)


def _halved(image: Floats) -> Floats:
    """Half as large: means of 2 × 2; an odd last row or column is left out."""
    height, width = (size // 2 * 2 for size in image.shape[:2])
    cut = image[:height, :width]
    return cut.reshape(height // 2, 2, width // 2, 2, -1).mean(axis=(1, 3))


def _doubled(image: Floats, shape: tuple[int, ...]) -> Floats:
    """Twice as large, of this shape, each value four times and at the far edges once more where the size is odd."""
    large = image.repeat(2, axis=0).repeat(2, axis=1)
    return np.pad(large, ((0, shape[0] - large.shape[0]), (0, shape[1] - large.shape[1]), (0, 0)), mode="edge")
