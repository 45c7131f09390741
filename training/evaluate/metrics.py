"""The numbers, as pure functions of arrays. Row i of a generated array belongs to row i of the real one.

Identity metrics follow SF2F (Bai et al. 2022, arXiv:2006.05888), sweep and age columns SCLDM; every function says what
exactly it counts, because under the same name papers count different things.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float64]

RANKS = (1, 2, 5, 10, 20, 50)
GALLERIES, GALLERY_SIZE = 3, 100
WITHIN_YEARS = 10.0
KID_SUBSETS, KID_SUBSET_SIZE = 100, 100


def sex_accuracy(male: Floats, sexes: Sequence[str] | NDArray[np.str_]) -> float:
    """Percent of portraits whose probability of being male [n] lies on the side of the voice's sex, "F" or "M"."""
    return 100.0 * float(np.mean((np.asarray(male) > 0.5) == (np.asarray(sexes) == "M")))


def age_errors(ages: Floats, truth: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Mean absolute error in years, and the percent with |difference| <= 10 years; both [n]."""
    difference = np.abs(np.asarray(ages, dtype=np.float64) - np.asarray(truth, dtype=np.float64))
    return float(difference.mean()), 100.0 * float(np.mean(difference <= WITHIN_YEARS))


def unit(features: Floats) -> Floats:
    """Features [..., F] scaled to length 1; a zero vector stays zero."""
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(length > 0, length, 1.0)


def cosine(a: Floats, b: Floats) -> Floats:
    """Cosine of each pair of rows: [n, F], [n, F] → [n]. SCLDM's column shows angles, others 1 − cos: see `angle`."""
    return cast("Floats", np.sum(unit(a) * unit(b), axis=-1))


def angle(cosines: Floats) -> Floats:
    """The angle of each cosine, in degrees."""
    return cast("Floats", np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))))


def l1(a: Floats, b: Floats) -> Floats:
    """Sum of absolute differences of each pair of rows (SF2F's L1 is a sum, not a mean): [n]."""
    return cast("Floats", np.abs(a - b).sum(axis=-1))


def l2(a: Floats, b: Floats) -> Floats:
    """Euclidean distance of each pair of rows: [n]."""
    return cast("Floats", np.linalg.norm(a - b, axis=-1))


def galleries(count: int, seed: int) -> list[NDArray[np.int64]]:
    """SF2F's retrieval: three disjoint galleries of 100 of `count` identities; fewer or smaller where they end."""
    order = np.random.default_rng([seed, 0x6A1]).permutation(count)
    size = min(GALLERY_SIZE, count)
    return [order[i * size : (i + 1) * size] for i in range(min(GALLERIES, count // size))]


def retrieval(queries: Floats, gallery: Floats) -> dict[int, float]:
    """R@K in percent: how often the true row is among the K of the gallery with the highest cosine. Both [n, F].

    Equal cosines share their places: a query equally far from all has R@K = K / n, which is chance.
    """
    similarity = unit(queries) @ unit(gallery).T
    own = np.diag(similarity)[:, None]
    ahead = (similarity > own + 1e-12).sum(axis=1)
    equal = (np.abs(similarity - own) <= 1e-12).sum(axis=1)
    return {k: 100.0 * float(np.mean(np.clip((k - ahead) / equal, 0.0, 1.0))) for k in RANKS}


def mean_retrieval(queries: Floats, real: Floats, groups: Sequence[NDArray[np.int64]]) -> dict[int, float]:
    """Mean of `retrieval` over the galleries; `queries` [n, K, F]: K portraits of each identity, each a query."""
    found = [retrieval(queries[rows, k], real[rows]) for rows in groups for k in range(queries.shape[1])]
    return {rank: float(np.mean([one[rank] for one in found])) for rank in RANKS}


def chance(size: int) -> dict[int, float]:
    """R@K in percent of drawing at random from a gallery of this size."""
    return {rank: 100.0 * min(rank, size) / size for rank in RANKS}


def same_voice(features: Floats) -> float | None:
    """Mean cosine between portraits of one voice, over all pairs of its seeds, [n, K, F]; None for one seed.

    Lower is more diverse; 1 means that the seed changes nothing the judge sees.
    """
    count = features.shape[1]
    if count < 2:
        return None
    return _mean_off_diagonal(np.einsum("nkf,nlf->nkl", unit(features), unit(features)))


def other_voice(features: Floats) -> float | None:
    """Mean cosine between portraits of different voices, [n, K, F]; None for one voice.

    The level of strangers: `same_voice` above it is what the voice decides.
    """
    n, count, _ = features.shape
    if n < 2:
        return None
    of_voices = unit(features).sum(axis=1)
    apart = np.sum(of_voices.sum(axis=0) ** 2) - np.sum(of_voices**2)
    return float(apart / (n * (n - 1) * count**2))


def _mean_off_diagonal(similarity: Floats) -> float:
    """Mean of matrices [..., n, n] without their diagonals."""
    n = similarity.shape[-1]
    total = similarity.sum(axis=(-2, -1)) - np.trace(similarity, axis1=-2, axis2=-1)
    return float(np.mean(total / (n * (n - 1))))


def kid(real: Floats, generated: Floats, seed: int) -> tuple[float, float] | None:
    """Kernel Inception Distance (Bińkowski et al. 2018, degree 3) ×1000 of features [n, F]: mean, deviation.

    Over 100 seeded subsets of 100, or of all where there are fewer; None under two. The features are not the Inception
    network's but the caller's, so values compare only where they are the same. Unbiased: near 0, perhaps below, for two
    samples of one distribution.
    """
    size = min(KID_SUBSET_SIZE, len(real), len(generated))
    if size < 2:
        return None
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that features are kept in memory, which they are anyway
        metric = KernelInceptionDistance(_Features(real.shape[1]), subsets=KID_SUBSETS, subset_size=size)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(generated), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return 1000.0 * float(mean), 1000.0 * float(deviation)


def fid(real: Floats, generated: Floats) -> float | None:
    """Fréchet distance (Heusel et al. 2017) of features [n, F]; None under two rows. See `kid` on whose features.

    Biased upwards the fewer rows there are: compare only rows of equal n.
    """
    if min(len(real), len(generated)) < 2:
        return None
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(_Features(real.shape[1]))
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(generated), real=False)
    return float(metric.compute())


class _Features(nn.Module):
    """Stands where torchmetrics expects the network: the features are already computed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features
