"""Build a corpus: `build_corpus(makehuman, speech, out, identities)`, mounted as `s2f-train corpus`.

On disk: images/ID_k.jpg, clips/ID_k.flac (16 kHz, 16 bit, 7 s), table.csv (see table.py), corpus.json, parts/ID.json
(the row of a finished identity, written last) and cache/ (analysed voices; may be deleted). An identity depends on the
seed and its number alone, so workers, order and interruptions do not change a byte, a corpus grows by asking for more,
and one split can be made without the others. Portraits are JPEG quality 95 without chroma subsampling: a fifth of the
size of PNG, with an error of about one grey level, far below what a 128 px model resolves.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.errors import BackendMissing, CorpusInvalid, InvalidArgument, OutputUnwritable
from training.corpus import attributes, pairing, parallel, table, voices
from training.corpus.attributes import Catalogue, FaceAttributes, ViewAttributes
from training.corpus.augment import augment
from training.corpus.licences import licences_of

CLIP_SECONDS = 7.0
JPEG_QUALITY = 95
VOICE_STREAM, FACE_STREAM, VIEW_STREAM, CLIP_STREAM = range(4)
PACKAGES = ("numpy", "scipy", "pyworld", "soundfile", "pillow", "numba")
SPLIT_RULE = "source speakers of each sex sorted by name; index % 10 == 8 is test, 9 val, the rest train"
STATEMENT = (
    "A synthetic world for proving the machine: rendered faces, re-synthesised voices, and an invented rule between "
    "them (training/corpus/README.md). It says nothing about people."
)

logger = logging.getLogger(__name__)


class PortraitRenderer(Protocol):
    """What the builder needs of `render.Renderer`."""

    def catalogue(self) -> Catalogue: ...

    def render(self, face: FaceAttributes, view: ViewAttributes) -> np.ndarray: ...


RendererFactory = Callable[[str, int], PortraitRenderer]


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs to know; the same for all identities."""

    makehuman: str
    speech: str
    out: Path
    portraits: int
    clips: int
    size: int
    seed: int
    speakers: tuple[voices.Speaker, ...]
    splits: dict[str, str]
    only: str | None = None  # the one split that is made

    @property
    def cache(self) -> Path:
        return self.out / "cache" / "voices"

    def part(self, number: int) -> Path:
        return self.out / "parts" / f"{number:06d}.json"

    def wanted(self, identities: int) -> dict[int, voices.Speaker]:
        """The numbers below `identities` that are made, with their speakers."""
        chosen = {number: pairing.choose_speaker(self.seed, number, self.speakers) for number in range(identities)}
        return {n: one for n, one in chosen.items() if self.only in {None, self.splits[one.name]}}


def open_renderer(makehuman: str, size: int) -> PortraitRenderer:
    """The real renderer, imported late: a build with another renderer needs no numba. Raises BackendMissing."""
    try:
        from training.corpus.render import Renderer
    except ImportError as error:
        raise BackendMissing(f"no renderer ({error}); install it with: pip install 's2f-edge[train]'") from error
    return Renderer(makehuman, size)


def build_corpus(
    makehuman: str | os.PathLike[str],
    speech: str | os.PathLike[str],
    out: str | os.PathLike[str],
    identities: int,
    *,
    portraits: int = 1,
    clips: int = 1,
    size: int = 256,
    seed: int = 0,
    only: str | None = None,
    workers: int | None = None,
    renderer: RendererFactory = open_renderer,
    progress: bool = True,
) -> table.Corpus:
    """Make the corpus, or what is missing of it. `workers`: processes, all cores by default; 1 works in this process.

    `only`: of the `identities`, make just those of this split, with the bytes they have in the whole corpus.
    Raises InvalidArgument for numbers out of range, CorpusInvalid for unusable sources or an `out` that holds a corpus
    made with other arguments or another release's rule or renderer, OutputUnwritable where `out` cannot be written,
    BackendMissing without the train extra.
    """
    if only not in {None, *table.SPLITS}:
        raise InvalidArgument(f"only is {only!r}; choose one of {', '.join(table.SPLITS)}, or none for all")
    _check_numbers(identities=identities, portraits=portraits, clips=clips, size=size, seed=seed, workers=workers)
    if not Path(makehuman).is_dir():
        raise CorpusInvalid(f"{makehuman}: no such folder; give the MakeHuman data folder")
    speakers = voices.read_speakers(speech)
    plan = Plan(
        os.fspath(makehuman), os.fspath(speech), Path(out), portraits, clips, size, seed,
        tuple(speakers), pairing.assign_splits(speakers), only,
    )  # fmt: skip
    wanted = plan.wanted(identities)
    if not wanted:
        raise InvalidArgument(f"none of {identities} identities is in split {only!r}; ask for more identities")
    info = _describe(plan, identities)
    try:
        _open_out(plan.out, info)
        with parallel.processes(workers, _Worker, plan, renderer) as run_all:
            heard = sorted(set(wanted.values()), key=_name)
            new = [speaker for speaker in heard if not voices.is_cached(speaker, plan.cache)]
            parallel.follow(run_all("analyse", new), len(new), "voices", "recording", progress=progress)
            waiting = [number for number in wanted if not _is_done(plan, number)]
            parallel.follow(run_all("make", waiting), len(waiting), "identities", "identity", progress=progress)
        rows = [json.loads(plan.part(number).read_bytes()) for number in wanted]
        table.write_table(plan.out / table.TABLE_NAME, rows)
        table.write_atomic(plan.out / table.INFO_NAME, _encode(info | {"complete": True}))
    except OSError as error:
        raise OutputUnwritable(f"{out}: {error}; free space or choose another folder, then run again") from error
    return table.read_corpus(plan.out)


def make_identity(plan: Plan, number: int, renderer: PortraitRenderer, catalogue: Catalogue) -> table.Identity:
    """Draw, render, synthesise and write one identity; its part file is written last and marks it as finished."""
    speaker = pairing.choose_speaker(plan.seed, number, plan.speakers)
    source = voices.cached_source(speaker, plan.cache)
    voice = pairing.draw_voice(pairing.generator(plan.seed, number, VOICE_STREAM), speaker.sex, source)
    face = pairing.draw_face(pairing.generator(plan.seed, number, FACE_STREAM), voice, speaker.sex, catalogue)
    name = f"{number:06d}"
    images = tuple(f"images/{name}_{index}.jpg" for index in range(plan.portraits))
    clips = tuple(f"clips/{name}_{index}.flac" for index in range(plan.clips))
    for index, image in enumerate(images):
        view = pairing.draw_view(pairing.generator(plan.seed, number, VIEW_STREAM, index), catalogue)
        table.write_atomic(plan.out / image, encode_jpeg(renderer.render(face, view)))
    for index, clip in enumerate(clips):
        rng = pairing.generator(plan.seed, number, CLIP_STREAM, index)
        pcm = voices.synthesise(source, voice, CLIP_SECONDS, rng)
        table.write_atomic(plan.out / clip, encode_flac(augment(pcm, voices.SAMPLE_RATE, rng)))
    identity = table.Identity(name, plan.splits[speaker.name], speaker.sex, speaker.name, voice, face, images, clips)
    table.write_atomic(plan.part(number), _encode(table.to_row(identity)))
    return identity


def encode_jpeg(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] to JPEG, quality 95, 4:4:4."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def encode_flac(pcm: np.ndarray) -> bytes:
    """float32 [samples], -1…1, to 16-bit FLAC at 16 kHz."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, pcm, voices.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def run(args: argparse.Namespace) -> None:
    """Carry out `s2f-train corpus`; what was made is logged."""
    corpus = build_corpus(
        args.makehuman, args.speech, args.out, args.identities, portraits=args.portraits, clips=args.clips,
        size=args.size, seed=args.seed, only=args.only, workers=args.workers,
    )  # fmt: skip
    counts = ", ".join(f"{name} {len(corpus.split(name))}" for name in table.SPLITS)
    logger.info("%s: %d identities (%s)", corpus.root, len(corpus.identities), counts)


def _check_numbers(*, workers: int | None, **numbers: int) -> None:
    ranges = {
        "identities": (1, 999_999), "portraits": (1, 100), "clips": (1, 100), "size": (32, 1024),
        "seed": (0, 2**63 - 1),
    }  # fmt: skip
    for name, value in {**numbers, **({} if workers is None else {"workers": workers})}.items():
        low, high = ranges.get(name, (1, 1024))
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidArgument(f"{name} is {value!r}; give a whole number from {low} to {high}")


def _describe(plan: Plan, identities: int) -> dict[str, Any]:
    """corpus.json: no time, no path, so that it too is reproduced bit for bit."""
    return {
        "schema_version": table.SCHEMA_VERSION,
        **_versions(),
        "complete": False,
        "identities": identities,
        "arguments": {name: getattr(plan, name) for name in ("seed", "portraits", "clips", "size")}
        | ({"only": plan.only} if plan.only else {}),
        "sources": {
            "makehuman": _fingerprint_folder(Path(plan.makehuman)),
            "speech": fingerprint_speech(plan.speakers),
        },
        "clip": {"seconds": CLIP_SECONDS, "sample_rate": voices.SAMPLE_RATE},
        "split_rule": SPLIT_RULE,
        "packages": {name: _version(name) for name in ("s2f-edge", *PACKAGES)},
        "licences": licences_of(plan.speakers),
        "statement": STATEMENT,
    }


def _versions() -> dict[str, int]:
    """What decides, beside seed, arguments and sources, on the bytes of an identity; a corpus without a key has 1."""
    return {
        "rule_version": pairing.RULE_VERSION,
        "render_version": attributes.RENDER_VERSION,
        "analysis_version": voices.ANALYSIS_VERSION,
    }


def _open_out(out: Path, info: dict[str, Any]) -> None:
    """Make the folders; refuse a folder whose corpus has other sources, arguments or versions of what makes it."""
    path = out / table.INFO_NAME
    if path.is_file():
        try:
            before = json.loads(path.read_bytes())
            other = [key for key in ("schema_version", "arguments", "sources") if before[key] != info[key]]
            other += [key for key, version in _versions().items() if before.get(key, 1) != version]
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusInvalid(f"{path}: damaged; delete it to build into this folder anyway") from error
        if other:
            differs = ", ".join(key.replace("_", " ") for key in other)
            raise CorpusInvalid(f"{out}: holds a corpus of other {differs} ({path.name}); choose another folder")
        if before.get("packages") != info["packages"]:
            logger.warning("%s: package versions changed since it was begun; its bytes may not be reproducible", out)
    elif (out / "parts").is_dir() and any((out / "parts").iterdir()):
        raise CorpusInvalid(f"{out}: has finished parts but no {path.name}; choose another folder")
    for name in ("images", "clips", "parts", "cache/voices"):
        (out / name).mkdir(parents=True, exist_ok=True)
    table.write_atomic(path, _encode(info))


def _is_done(plan: Plan, number: int) -> bool:
    """Whether the part is there, readable, and all its files are."""
    try:
        identity = table.from_row(json.loads(plan.part(number).read_bytes()))
        return all((plan.out / name).stat().st_size > 0 for name in (*identity.images, *identity.clips))
    except (OSError, ValueError, KeyError, TypeError):
        return False


class _Worker:
    """One process's own renderer, opened when the first portrait is asked for."""

    def __init__(self, plan: Plan, factory: RendererFactory) -> None:
        self.plan, self.factory = plan, factory
        self.renderer: PortraitRenderer | None = None

    def analyse(self, speaker: voices.Speaker) -> None:
        voices.cached_source(speaker, self.plan.cache)

    def make(self, number: int) -> None:
        if self.renderer is None:
            self.renderer = self.factory(self.plan.makehuman, self.plan.size)
            self.catalogue = self.renderer.catalogue()
        make_identity(self.plan, number, self.renderer, self.catalogue)


def _fingerprint_folder(folder: Path) -> str:
    """sha256 over the names and sizes of all files below."""
    listed = sorted(
        (path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.rglob("*") if path.is_file()
    )
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def fingerprint_speech(speakers: Iterable[voices.Speaker]) -> str:
    """sha256 over name, sex and file size of each speaker."""
    listed = [(speaker.name, speaker.sex, speaker.path.stat().st_size) for speaker in speakers]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _encode(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _name(speaker: voices.Speaker) -> str:
    return speaker.name
