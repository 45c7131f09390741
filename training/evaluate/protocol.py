"""What is measured: which voices, with which seeds, steps and prior weights, against which portraits.

The core knows images and arrays; what paints them (a trained run, a bundle) is a `Painter`. Voices are those of the
test split, whose source speakers training has never heard; each speaks its clip 0. Every voice has seeds of its
own, the same in every row: a few noises shared by all voices would lend their own chance face to the whole table.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.audio import load_speech
from runtime.errors import CorpusInvalid, InvalidArgument
from training.corpus.table import Corpus, Identity
from training.data import read_portrait
from training.evaluate import metrics
from training.evaluate.judge import SIZE, Judge, Readings

logger = logging.getLogger(__name__)

PRIOR_WEIGHTS = (0.0, 0.003, 0.01, 0.03, 0.1)  # SCLDM figure 6 sweeps the weight around its 0.01
VOICES_AT_ONCE = 16
Pixels = NDArray[np.uint8]
Values = dict[str, "float | None"]


class Painter(Protocol):
    """What turns voices into portraits: one arm of a run, or a bundle."""

    name: str  # of the arm, as tables show it; different for every painter of one evaluation
    identity: str  # sha256 of what it paints with
    facts: Mapping[str, Any]  # solver, guidance and what else a reader must know
    steps: tuple[int, ...]
    default_steps: int
    prior_weight: float  # the default
    prior_weights: tuple[float, float]  # lowest and highest; equal where it is fixed

    def paint(self, pcm: NDArray[np.float32], seeds: Sequence[int], steps: int, prior_weight: float) -> Pixels:
        """pcm float32 [n, 96000], one seed per row → portraits uint8 [n, H, W, 3]."""
        ...


@dataclass(frozen=True)
class Voices:
    """Voices to paint. Row i of everything is one voice; `identities` is empty where no face belongs to the voice."""

    kind: str
    clips: tuple[Path, ...]
    sexes: tuple[str, ...]
    identities: tuple[Identity, ...] = ()

    def __len__(self) -> int:
        return len(self.clips)


@dataclass(frozen=True)
class Real:
    """The judge's readings of the real portraits, row i is identity i.

    `mean` is what portraits are compared with. How near another view of the same person comes, `query` against `held`,
    is the most that can be asked of them.
    """

    first: Readings  # of picture 0
    mean: metrics.Floats  # [n, F], mean features over all pictures of an identity
    query: metrics.Floats  # [n, F]
    held: metrics.Floats  # [n, F], of pictures that are not in `query`
    views: str  # what `query` and `held` are


@dataclass(frozen=True)
class Row:
    """One line of the result: who painted what, and the values of `measure` by name."""

    arm: str
    voices: str
    n: int
    seeds: int
    steps: int | None
    prior_weight: float | None
    values: Values


@dataclass(frozen=True)
class Result:
    """Everything a report shows."""

    rows: tuple[Row, ...]
    prior: tuple[Row, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


def test_voices(corpus: Corpus, count: int | None, seed: int) -> Voices:
    """The voices of the test split, or `count` of them drawn with this seed. CorpusInvalid where there is none."""
    identities = corpus.split("test")
    if not identities:
        raise CorpusInvalid(f"corpus {corpus.root} has no identity in split 'test'; build it with more identities")
    if count is not None and count < 1:
        raise InvalidArgument(f"voices is {count}; give a number from 1, or none for all")
    if count is not None:
        chosen = np.sort(np.random.default_rng([seed, 0x701CE]).permutation(len(identities))[:count])
        identities = tuple(identities[i] for i in chosen)
    clips = tuple(corpus.clip_paths(identity)[0] for identity in identities)
    return Voices("synthetic", clips, tuple(identity.sex for identity in identities), identities)


def real_side(judge: Judge, corpus: Corpus, identities: Sequence[Identity]) -> Real:
    """The judge's readings of the renders; with one picture per identity, its mirror image is the other view."""
    paths = [corpus.image_paths(identity) for identity in identities]
    each = min(len(one) for one in paths)
    pictures = np.stack([[read_portrait(path, SIZE) for path in one[:each]] for one in paths])
    first = judge.read(pictures[:, 0])
    if each == 1:
        mirrored = judge.read(pictures[:, 0, :, ::-1]).features
        return Real(first, first.features, mirrored, first.features, "the same picture, mirrored")
    others = np.mean([judge.read(pictures[:, k]).features for k in range(1, each)], axis=0)
    mean = (first.features + (each - 1) * others) / each
    return Real(first, mean, first.features, others, f"one picture against the other {each - 1} of the person")


class Evaluation:
    """Measures painters and pictures against one set of voices, with one judge and one seed."""

    def __init__(
        self, judge: Judge, corpus: Corpus, *, voices: int | None = None, seeds: int = 2, seed: int = 0
    ) -> None:
        """`voices`: how many test voices, None for all; `seeds`: portraits of each; `seed`: of every draw made here."""
        if not 1 <= seeds <= 1000 or not 0 <= seed < 2**62:
            raise InvalidArgument(f"seeds is {seeds} and seed {seed}; give 1 to 1000 seeds, and a seed from 0")
        self.judge, self.corpus, self.seeds, self.seed = judge, corpus, seeds, seed
        self.voices = test_voices(corpus, voices, seed)
        self.real = real_side(judge, corpus, self.voices.identities)
        self.galleries = metrics.galleries(len(self.voices), seed)
        self._painted: dict[tuple[Any, ...], Readings] = {}

    def steps_rows(self, painter: Painter, voices: Voices | None = None) -> list[Row]:
        """One row per number of steps the painter offers, with its default prior weight."""
        return [self.row(painter, steps, painter.prior_weight, voices) for steps in painter.steps]

    def prior_rows(self, painter: Painter) -> list[Row]:
        """One row per prior weight in the painter's range, with its default steps; none where the weight is fixed."""
        low, high = painter.prior_weights
        weights = [w for w in PRIOR_WEIGHTS if low <= w <= high] if low < high else []
        return [self.row(painter, painter.default_steps, weight) for weight in weights]

    def row(self, painter: Painter, steps: int, weight: float, voices: Voices | None = None) -> Row:
        """Paints every voice with every seed and measures the portraits."""
        voices = self.voices if voices is None else voices
        readings = self._paint(painter, voices, steps, weight)
        logger.info(
            "%s, %s voices, %d steps, prior %g: %d portraits", painter.name, voices.kind, steps, weight, len(readings)
        )
        values = self.measure(readings, voices)
        return Row(painter.name, voices.kind, len(voices), self.seeds, steps, weight, values)

    def reference_rows(self, others: Mapping[str, Pixels]) -> list[Row]:
        """What can be reached and what chance gives; `others`: portraits of the same identities made otherwise."""
        rows = {"real portraits": self._real_values(), "another's portrait": self._strangers_values()}
        rows |= {name: self.measure(self.judge.read(pixels), self.voices) for name, pixels in others.items()}
        return [Row(name, self.voices.kind, len(self.voices), 1, None, None, values) for name, values in rows.items()]

    def measure(self, readings: Readings, voices: Voices) -> Values:
        """All values for portraits in the order voice by voice, seed by seed within a voice."""
        each = len(readings) // len(voices)
        features = readings.features.reshape(len(voices), each, -1)
        values: Values = {"sex": metrics.sex_accuracy(readings.male, np.repeat(voices.sexes, each))}
        values |= {"same_voice": metrics.same_voice(features), "other_voice": metrics.other_voice(features)}
        if voices.identities:
            ages = np.repeat([identity.age for identity in voices.identities], each)
            values["age_mae"], values["age_within"] = metrics.age_errors(readings.age, ages)
            values |= self._identity(features, self.real.mean) | self._distribution(
                self.real.first.features, readings.features
            )
        return values

    def _identity(self, features: metrics.Floats, gallery: metrics.Floats) -> Values:
        """Distances to the real side and retrieval; features [n, K, F], gallery [n, F]."""
        real = np.broadcast_to(gallery[:, None], features.shape)
        cosines = metrics.cosine(features, real)
        values: Values = {
            "cosine": float(cosines.mean()),
            "cosine_variance": float(cosines.var()),
            "angle": float(metrics.angle(cosines).mean()),
            "one_minus_cosine": float((1 - cosines).mean()),
            "l1": float(metrics.l1(features, real).mean()),
            "l2": float(metrics.l2(features, real).mean()),
            "l1_unit": float(metrics.l1(metrics.unit(features), metrics.unit(real)).mean()),
            "l2_unit": float(metrics.l2(metrics.unit(features), metrics.unit(real)).mean()),
        }
        found = metrics.mean_retrieval(features, gallery, self.galleries)
        return values | {f"r{rank}": value for rank, value in found.items()}

    def _distribution(self, real: metrics.Floats, generated: metrics.Floats) -> Values:
        found = metrics.kid(real, generated, self.seed)
        kid, deviation = found or (None, None)
        return {"kid": kid, "kid_deviation": deviation, "fid": metrics.fid(real, generated)}

    def _real_values(self) -> Values:
        """Sex and age of picture 0; identity between two views; KID and FID between halves of the identities."""
        values = self.measure(self.real.first, self.voices)
        values |= self._identity(self.real.query[:, None], self.real.held)
        first, second = np.array_split(np.random.default_rng([self.seed, 0x4A1F]).permutation(len(self.voices)), 2)
        return values | self._distribution(self.real.first.features[first], self.real.first.features[second])

    def _strangers_values(self) -> Values:
        """Everybody gets the real portrait of somebody else: each the next in a seeded circle."""
        circle = np.random.default_rng([self.seed, 0x57]).permutation(len(self.voices))
        somebody = np.empty_like(circle)
        somebody[circle] = np.roll(circle, 1)
        values = self.measure(_rows(self.real.first, somebody), self.voices)
        return values | {"kid": None, "kid_deviation": None, "fid": None}  # the same set of portraits

    def _paint(self, painter: Painter, voices: Voices, steps: int, weight: float) -> Readings:
        key = (painter, voices.kind, steps, weight)
        if key not in self._painted:
            parts = [
                self.judge.read(painter.paint(*self._batch(voices.clips, first), steps, weight))
                for first in range(0, len(voices), VOICES_AT_ONCE)
            ]
            self._painted[key] = _joined(parts)
        return self._painted[key]

    def _batch(self, clips: Sequence[Path], first: int) -> tuple[NDArray[np.float32], list[int]]:
        """Some voices from `first` on, each once per seed, and the seeds: counted up through all voices from `seed`."""
        pcm = np.stack([load_speech(clip) for clip in clips[first : first + VOICES_AT_ONCE]])
        start = self.seed + first * self.seeds
        return np.repeat(pcm, self.seeds, axis=0), list(range(start, start + len(pcm) * self.seeds))


def _rows(readings: Readings, order: NDArray[np.int64]) -> Readings:
    return Readings(readings.male[order], readings.age[order], readings.attributes[order], readings.features[order])


def _joined(parts: Sequence[Readings]) -> Readings:
    return Readings(
        *(np.concatenate([getattr(p, k) for p in parts]) for k in ("male", "age", "attributes", "features"))
    )
