"""A corpus as arrays: portraits and clips of one split packed into memory-mapped files, and batches drawn from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from runtime.audio import fit_window, normalise_level
from runtime.errors import CorpusInvalid
from runtime.specs import SAMPLE_RATE, SAMPLES
from training.checkpoint import Origin
from training.corpus.table import TABLE_NAME, Corpus, Identity, read_corpus

SPARE = SAMPLE_RATE  # a packed clip keeps up to a second more than the six, from which training crops


@dataclass(frozen=True)
class Pairs:
    """Portraits and clips of n identities; row i of both belongs to one person.

    portraits: uint8 [n, K, size, size, 3]; clips: int16 [n, M, samples], 16 kHz.
    """

    identities: tuple[Identity, ...]
    portraits: NDArray[np.uint8]
    clips: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.identities)

    def draw(self, rng: np.random.Generator, batch: int) -> NDArray[np.int64]:
        """`batch` different identities, or all of them and some again where there are fewer."""
        if batch <= len(self):
            return rng.choice(len(self), batch, replace=False)
        return np.resize(rng.permutation(len(self)), batch)

    def faces(self, rows: Sequence[int] | NDArray[np.int64], rng: np.random.Generator | None = None) -> Tensor:
        """Portraits float32 [batch, 3, size, size], −1…1: the first of each; with `rng` any one, mirrored at random."""
        which = rng.integers(self.portraits.shape[1], size=len(rows)) if rng else np.zeros(len(rows), dtype=int)
        pixels = torch.from_numpy(self.portraits[np.asarray(rows), which]).permute(0, 3, 1, 2).float() / 127.5 - 1
        if rng is None:
            return pixels
        mirror = torch.from_numpy(rng.random(len(rows)) < 0.5)
        return torch.where(mirror[:, None, None, None], pixels.flip(3), pixels)

    def speech(self, rows: Sequence[int] | NDArray[np.int64], rng: np.random.Generator | None = None) -> Tensor:
        """PCM float32 [batch, 96000] as the runtime cuts it; with `rng` a random clip and start, and a little noise."""
        windows = [self._window(int(row), rng) for row in rows]
        return torch.from_numpy(np.stack([normalise_level(w) for w in windows]))

    def _window(self, row: int, rng: np.random.Generator | None) -> NDArray[np.float32]:
        clips = self.clips[row]
        if rng is None:
            return fit_window(clips[0].astype(np.float32) / 32768, SAMPLES)
        clip = clips[rng.integers(len(clips))]
        start = rng.integers(len(clip) - SAMPLES + 1) if len(clip) > SAMPLES else 0
        pcm = fit_window(clip[start:].astype(np.float32) / 32768, SAMPLES)
        noise = rng.standard_normal(SAMPLES, dtype=np.float32)
        return pcm + noise * (pcm.std() * np.float32(10 ** (-rng.uniform(20, 50) / 20)))


def load_pairs(corpus_dir: Path, split: str, size: int, cache: Path) -> Pairs:
    """One split of a corpus, packed once into `cache`; CorpusInvalid where the corpus cannot serve training."""
    corpus = read_corpus(corpus_dir)
    identities = corpus.split(split)
    if not identities:
        raise CorpusInvalid(f"corpus {corpus_dir} has no identity in split {split!r}; build it with more identities")
    portraits = min(len(identity.images) for identity in identities)
    clips = min(len(identity.clips) for identity in identities)
    return Pairs(
        identities,
        load_portraits(corpus, identities, size, cache / f"{split}-{size}px", portraits),
        _packed(cache / f"{split}-clips-{fingerprint(corpus)[:12]}.npy", (len(identities), clips, SAMPLES + SPARE),
                np.int16,
                lambda i: np.stack([read_clip(corpus_dir / f) for f in identities[i].clips[:clips]])),
    )  # fmt: skip


def load_portraits(
    corpus: Corpus, identities: Sequence[Identity], size: int, pack: Path, each: int = 1
) -> NDArray[np.uint8]:
    """The first `each` portraits of these identities, uint8 [n, each, size, size, 3], packed once beside `pack`."""
    return _packed(
        pack.with_name(f"{pack.name}-{fingerprint(corpus)[:12]}.npy"), (len(identities), each, size, size, 3), np.uint8,
        lambda i: np.stack([read_portrait(corpus.root / f, size) for f in identities[i].images[:each]]),
    )  # fmt: skip


def origin_of(corpus: Corpus, feature_loss: str) -> Origin:
    """What a model trained on this corpus must say: its fingerprint, its data and their licences."""
    counts = ", ".join(f"{len(corpus.split(name))} {name}" for name in ("train", "val", "test"))
    return Origin(
        corpus=fingerprint(corpus),
        parent="",
        training_data=f"{corpus.info['statement']} Identities: {counts} ({command_of(corpus)}).",
        licence=" ".join(f"{key.capitalize()}: {text}" for key, text in corpus.info["licences"].items()),
        feature_loss=feature_loss,
    )


def command_of(corpus: Corpus) -> str:
    """The command that makes this corpus, without its folders."""
    identities = corpus.info.get("identities", len(corpus.identities))  # as asked for, of which --only makes a part
    arguments = {"identities": identities, **corpus.info.get("arguments", {})}
    return " ".join(["s2f-train corpus", *(f"--{key} {value}" for key, value in arguments.items())])


def fingerprint(corpus: Corpus) -> str:
    """Which corpus this is: sha256, hex, of its table, of what it was made from and of the rules it was made by.

    The table says who is in it; how the same person looks and sounds depends on the rest.
    """
    made = {key: corpus.info.get(key) for key in ("rule_version", "render_version", "analysis_version", "sources")}
    digest = hashlib.sha256((corpus.root / TABLE_NAME).read_bytes())
    digest.update(json.dumps(made, sort_keys=True).encode())
    return digest.hexdigest()


def read_portrait(path: Path, size: int) -> NDArray[np.uint8]:
    """A portrait as uint8 [size, size, 3], area-averaged."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BOX))
    except OSError as error:
        raise CorpusInvalid(f"portrait {path} cannot be read: {error}; build the corpus again, it resumes") from error


def read_clip(path: Path) -> NDArray[np.int16]:
    """A clip as int16 [112000], repeated or cut to seven seconds."""
    try:
        pcm, rate = soundfile.read(path, dtype="int16")
    except (OSError, RuntimeError) as error:
        raise CorpusInvalid(f"clip {path} cannot be read: {error}; build the corpus again, it resumes") from error
    if rate != SAMPLE_RATE or pcm.ndim != 1 or not pcm.size:
        raise CorpusInvalid(f"clip {path} is not 16 kHz mono speech; build the corpus again")
    return np.resize(pcm, SAMPLES + SPARE)


def _packed(
    path: Path, shape: tuple[int, ...], dtype: type[np.generic], row: Callable[[int], NDArray[np.generic]]
) -> NDArray[np.generic]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        pack = np.lib.format.open_memmap(partial, "w+", dtype, shape)
        for i in tqdm(range(shape[0]), f"pack {path.stem}", mininterval=5, ncols=110):
            pack[i] = row(i)
        pack.flush()
        partial.replace(path)
    return np.load(path, mmap_mode="r")
