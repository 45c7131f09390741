"""Voices and a renderer for the corpus tests: buzzing vowels for recordings, flat pictures for portraits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import lfilter

from training.corpus.attributes import Catalogue, FaceAttributes, ViewAttributes

RATE = 16_000


def vowel(f0_hz: float, seconds: float = 3.0, spacing_hz: float = 1030.0, syllables: float = 4.0) -> np.ndarray:
    """float64 [samples]: pulses at f0_hz through a uniform tube's resonances, swelling `syllables` times a second."""
    seconds_in = np.arange(int(seconds * RATE)) / RATE
    phase = np.cumsum(f0_hz * (1 + 0.04 * np.sin(2 * np.pi * 0.7 * seconds_in)) / RATE)
    signal = np.diff(np.floor(phase), prepend=0.0)
    for number in range(1, 8):
        centre = (number - 0.5) * spacing_hz
        if centre < RATE / 2 - 300:
            radius = np.exp(-np.pi * (60 + 20 * number) / RATE)
            signal = lfilter([1.0], [1.0, -2 * radius * np.cos(2 * np.pi * centre / RATE), radius**2], signal)
    signal = lfilter([1.0], [1.0, -0.9], signal) * (0.02 + np.sin(np.pi * syllables * seconds_in) ** 2)
    signal += 1e-4 * np.abs(signal).max() * np.random.default_rng(0).standard_normal(len(signal))
    return 0.5 * signal / np.abs(signal).max()


def speech_folder(folder: Path, per_sex: int = 3, seconds: float = 2.0) -> Path:
    """A folder with speakers.csv and `per_sex` invented speakers of each sex."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file,speaker,sex,seconds,licence"]
    for index in range(per_sex):
        for sex, base in (("F", 190.0), ("M", 105.0)):
            name = f"{sex.lower()}{index}"
            soundfile.write(folder / f"{name}.flac", vowel(base * (1 + 0.05 * index), seconds), RATE)
            lines.append(f"{name}.flac,{name},{sex},{seconds},CC0 1.0")
    (folder / "speakers.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


CATALOGUE = Catalogue(
    hair_female=("bob01", "long01", "curls"),
    hair_male=("", "short01", "receding"),
    brows=("eyebrow001", "eyebrow002"),
    lashes=("eyelashes01",),
    eye_colours=("blue", "brown", "grey"),
    sliders={
        "head/head-scale-vert": -1.0, "head/head-square": 0.0, "head/head-triangular": 0.0, "chin/chin-bones": -1.0,
        "neck/neck-scale-horiz": -1.0, "nose/nose-hump": -1.0, "eyes/eye-scale": -1.0, "head/head-oval": 0.0,
    },
    expressions=("mouth-corner-puller",),
)  # fmt: skip


class FlatRenderer:
    """Draws attributes as flat colours, so that a different face or view is a different picture."""

    def __init__(self, makehuman: str, size: int) -> None:
        self.size = size

    def catalogue(self) -> Catalogue:
        return CATALOGUE

    def render(self, face: FaceAttributes, view: ViewAttributes) -> np.ndarray:
        image = np.zeros((self.size, self.size, 3), np.uint8)
        image[: self.size // 2] = (int(face.age * 3), int(face.sex * 255), int(face.african * 255))
        image[self.size // 2 :] = (int(128 + view.yaw * 5), int(128 + view.pitch * 5), face.seed % 256)
        return image


class SlowRenderer(FlatRenderer):
    """Leaves its process number in the corpus folder's `workers` and takes very long over a portrait."""

    def __init__(self, makehuman: str, size: int) -> None:
        super().__init__(makehuman, size)
        folder = Path(os.environ["S2F_TEST_WORKERS"])
        folder.mkdir(exist_ok=True)
        (folder / str(os.getpid())).touch()

    def render(self, face: FaceAttributes, view: ViewAttributes) -> np.ndarray:
        time.sleep(120)
        return super().render(face, view)


class FailingRenderer(FlatRenderer):
    """Breaks off at the fourth picture, as a killed build would."""

    def __init__(self, makehuman: str, size: int) -> None:
        super().__init__(makehuman, size)
        self.left = 3

    def render(self, face: FaceAttributes, view: ViewAttributes) -> np.ndarray:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().render(face, view)


class DyingWorker:
    """Its process is killed from outside, as a machine out of memory does, before its third piece of work."""

    def __init__(self) -> None:
        self.left = 2

    def work(self, item: int) -> None:
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
