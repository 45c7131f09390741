"""What is to be measured: bundle, voices, and which engines and portraits, the ones the goals speak of first."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.parts import Deadline
from runtime.audio import load_speech
from runtime.bench import synthetic_speech
from runtime.bundle import STAGES, Bundle, Manifest, read_bundle
from runtime.engines import INT8_FAMILY, MAX_ENGINE_BATCH, EngineSpec
from runtime.errors import S2FError
from runtime.executor import Work
from runtime.noise import seeded_noise
from runtime.pipeline import shipped_bundle
from runtime.specs import SAMPLE_RATE

logger = logging.getLogger(__name__)

FORMS = ("stages", "pipeline")
PRECISIONS = ("fp16", "fp32")
"""What is measured where nothing is asked for: int8 needs a bundle with a variant for TensorRT."""

BATCHES = (1, 4, MAX_ENGINE_BATCH)
SUFFIXES = (".flac", ".wav")

Pcm = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to draw `batch` portraits in so many steps: three engines in a chain, or one engine."""

    form: str
    precision: str
    batch: int
    steps: int

    def __str__(self) -> str:
        return f"{self.form} {self.precision} b{self.batch} s{self.steps}"

    def specs(self) -> list[EngineSpec]:
        """The engines it runs."""
        if self.form == "pipeline":
            return [EngineSpec("pipeline", self.batch, self.steps, self.precision)]
        return [EngineSpec(stage, self.batch, 0, self.precision) for stage in STAGES]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which precisions, forms, batch sizes and numbers of steps; the first of each is what the goals speak of."""

    precisions: tuple[str, ...] = PRECISIONS
    forms: tuple[str, ...] = FORMS
    batches: tuple[int, ...] = BATCHES
    steps: tuple[int, ...] = ()

    def of(self, manifest: Manifest) -> Selection:
        """The same for a bundle: steps it has, its default first."""
        wanted = self.steps or (manifest.default_steps, *(n for n in (1, 2, 4, 8) if n != manifest.default_steps))
        return dataclasses.replace(self, steps=tuple(n for n in wanted if n in manifest.step_tables))

    def arms(self) -> list[Arm]:
        """All arms, the fewer differences from the first the earlier."""
        arms = [
            (self._distance(precision, batch, steps), Arm(form, precision, batch, steps))
            for precision in self.precisions
            for batch in self.batches
            for steps in self.steps
            for form in self.forms
        ]
        return [arm for _, arm in sorted(arms, key=lambda pair: pair[0])]

    def headline(self) -> list[Arm]:
        """The arms the goals speak of: both forms of the first precision, batch and number of steps."""
        return [Arm(form, self.precisions[0], self.batches[0], self.steps[0]) for form in self.forms]

    def engines(self) -> list[EngineSpec]:
        """All engines the arms run, each once, in their order; stages come before the pipelines made of them."""
        arms = [Arm("stages", arm.precision, arm.batch, arm.steps) for arm in self.arms()]
        both = [one for pair in zip(arms, self.arms(), strict=True) for one in pair]
        return list(dict.fromkeys(spec for arm in both for spec in arm.specs()))

    def _distance(self, precision: str, batch: int, steps: int) -> tuple[int, int, int, int]:
        places = self.precisions.index(precision), self.batches.index(batch), self.steps.index(steps)
        return (sum(place > 0 for place in places), *places)


@dataclasses.dataclass(frozen=True)
class Counts:
    """How often. `runs`: timed calls per arm, five times as many for the headline; `rounds`: in which they are taken
    in turn; `voices` × `seeds` portraits are compared; `soak`: portraits; `warm`: seconds before timing.
    """

    runs: int = 200
    rounds: int = 4
    voices: int = 8
    seeds: int = 8
    soak: int = 10_000
    warm: float = 0.1

    def runs_of(self, *, headline: bool) -> int:
        """Timed calls per round."""
        return max(1, self.runs * (5 if headline else 1) // self.rounds)


@dataclasses.dataclass(frozen=True)
class Job:
    """One call of the command, as all pieces see it."""

    out: Path
    bundle_path: Path | None = None
    selection: Selection = dataclasses.field(default_factory=Selection)
    counts: Counts = dataclasses.field(default_factory=Counts)
    deadline: Deadline = dataclasses.field(default_factory=lambda: Deadline(None))
    speech: Path | None = None
    workspace: int | None = None
    optimisation: int | None = None
    torch_python: Path | None = None
    torch_path: str = ""
    torch_device: str = "cuda"
    network: str = "demo"

    @functools.cached_property
    def bundle(self) -> Bundle:
        """The bundle, verified. Raises the BundleXxx errors."""
        return read_bundle(self.bundle_path or shipped_bundle())

    @functools.cached_property
    def _eight(self) -> Bundle:
        return read_bundle(self.bundle.path, INT8_FAMILY)

    def source(self, precision: str) -> Bundle:
        """The bundle that graphs of a precision are made of. Raises BundleInvalid where int8's variant is missing."""
        return self._eight if precision == "int8" else self.bundle

    @functools.cached_property
    def wanted(self) -> Selection:
        """The selection for this bundle."""
        return self.selection.of(self.bundle.manifest)

    @functools.cached_property
    def voices(self) -> list[Pcm]:
        """float32 [96000] each: recordings where a folder is given, as many as it has, then synthetic ones."""
        found = list(recordings(self.speech, self.counts.voices)) if self.speech else []
        missing = range(len(found), self.counts.voices)
        return found + [load_speech((synthetic_speech(seed=seed), SAMPLE_RATE)) for seed in missing]

    def pairs(self) -> list[tuple[Pcm, int]]:
        """Every voice with seeds of its own."""
        seeds = self.counts.seeds
        return [(pcm, index * seeds + seed) for index, pcm in enumerate(self.voices) for seed in range(seeds)]


def groups(arms: Sequence[Arm], *fields: str) -> list[list[Arm]]:
    """Arms that share these fields, in the order of their first."""
    found: dict[tuple[object, ...], list[Arm]] = {}
    for arm in arms:
        found.setdefault(tuple(getattr(arm, field) for field in fields), []).append(arm)
    return list(found.values())


def recordings(folder: Path, count: int) -> Iterator[Pcm]:
    """The first `count` recordings below a folder, by name; what cannot be used is logged and passed over."""
    taken = 0
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        if taken == count:
            return
        try:
            yield load_speech(path)
        except S2FError as error:
            logger.warning("recording not used: %s", type(error).__name__)
        else:
            taken += 1


def options_of(manifest: Manifest) -> dict[str, float]:
    """The options of the contract at their defaults."""
    return {"guidance": manifest.guidance.default, "prior_weight": manifest.prior.weight}


def noise_of(manifest: Manifest, *seeds: int) -> npt.NDArray[np.float32]:
    """float32 [seeds, C, h, w]"""
    latent = manifest.latent
    return np.stack([seeded_noise(seed, (latent.channels, latent.height, latent.width)) for seed in seeds])


def inputs_of(manifest: Manifest, pcm: npt.NDArray[np.float32], noise: npt.NDArray[np.float32]) -> Arrays:
    """What a portrait takes: pcm [batch, samples], noise [batch, C, h, w], options at their defaults."""
    options = {name: np.array([value], np.float32) for name, value in options_of(manifest).items()}
    return {"pcm": pcm, "noise": noise, **options}


def work_of(manifest: Manifest, voices: Sequence[Pcm], seeds: Sequence[int], steps: int) -> Work:
    """Portraits at default options, one for every voice and its seed."""
    return Work(np.stack(list(voices)), list(seeds), manifest.table(steps), options_of(manifest))


def warm_up(call: Callable[[], object], seconds: float) -> None:
    """Call for so long, and twice at least: clocks rise, caches fill."""
    end = time.perf_counter() + seconds
    call()
    call()
    while time.perf_counter() < end:
        call()
