"""Stand-ins for evaluation's tests: a judge that reads three pixels, painters whose portraits are known beforehand."""

from __future__ import annotations

import dataclasses

import numpy as np
from conftest import CORPUS

from runtime.audio import load_speech
from training.corpus.table import Corpus, read_corpus
from training.data import read_portrait
from training.evaluate.judge import SIZE, Readings

TRUTH = {"renders": 300, "sharp": {"sex_percent": 99.5, "age_mae_years": 3.2, "age_within_10_percent": 97.0,
                                   "attribute_correlation": 0.4}}  # fmt: skip


def all_test(**changes: object) -> Corpus:
    """The fixture corpus with every identity in the test split."""
    corpus = read_corpus(CORPUS)
    identities = tuple(dataclasses.replace(identity, split="test", **changes) for identity in corpus.identities)
    return dataclasses.replace(corpus, identities=identities)


class TableJudge:
    """Knows the fixture's renders by heart, mirrored or not; of any other picture it reads the first pixel.

    First pixel (r, g, b): male if r > 127, g years old, features the b-th unit vector of 16.
    """

    accuracy = TRUTH

    def __init__(self) -> None:
        corpus = read_corpus(CORPUS)
        self.known = {}
        for number, identity in enumerate(corpus.identities):
            picture = read_portrait(corpus.image_paths(identity)[0], SIZE)
            for one in (picture, picture[:, ::-1]):
                self.known[one.tobytes()] = (float(identity.sex == "M"), identity.age, number)

    def read(self, portraits: np.ndarray) -> Readings:
        rows = [self.known.get(p.tobytes(), (p[0, 0, 0] / 255, float(p[0, 0, 1]), int(p[0, 0, 2]))) for p in portraits]
        male, ages, places = (np.array(column) for column in zip(*rows, strict=True))
        return Readings(male, ages.astype(float), np.zeros((len(rows), 1)), np.eye(16)[places.astype(int)])


class Painter:
    """Paints one flat colour per portrait, as `colour(number of the voice, seed, steps, weight)` says."""

    identity, facts = "ab" * 32, {"solver": "none", "guidance": 2.0}
    steps, default_steps = (1, 4), 4
    prior_weight, prior_weights = 0.01, (0.0, 0.05)

    def __init__(self, colour, name: str = "flat") -> None:
        corpus = read_corpus(CORPUS)
        self.voices = {
            load_speech(corpus.clip_paths(one)[0]).tobytes(): number for number, one in enumerate(corpus.identities)
        }
        self.colour, self.name, self.calls = colour, name, []

    def paint(self, pcm, seeds, steps, prior_weight):
        self.calls.append((steps, prior_weight, list(seeds)))
        assert pcm.dtype == np.float32
        assert pcm.shape == (len(seeds), 96_000)
        colours = [self.colour(self.voices.get(one.tobytes(), 0), seed, steps, prior_weight)
                   for one, seed in zip(pcm, seeds, strict=True)]  # fmt: skip
        return np.broadcast_to(np.array(colours, np.uint8)[:, None, None], (len(colours), 16, 16, 3))


def oracle(number: int, *_: object) -> tuple[int, int, int]:
    """The colour that `TableJudge` reads as the fixture's identity of this number."""
    identity = read_corpus(CORPUS).identities[number]
    return 255 * (identity.sex == "M"), round(identity.age), number
