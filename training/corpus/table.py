"""The table of a corpus: one row per identity, what each column holds, and how it is written, read and checked.

Columns: id, split (train, val, test), sex (F, M), age (years), speaker (source recording), f0_hz, formant_scale, rate,
breathiness, tremor, f0_range (the voice as heard, `voices.VoiceParameters`), gender (0 female … 1 male, the face's),
african, asian, caucasian (shares), weight, muscle (0…1), hair, brow, lashes, eyes (names), hair_r, hair_g, hair_b (sRGB
0…1 before greying), skin_tone (-1…1), stubble (0…1), face_seed, images, clips (relative paths, joined by ";"), then one
column per feature slider, named as in MakeHuman ("nose/nose-hump"), -1…1.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from runtime.errors import CorpusInvalid
from training.corpus.attributes import FaceAttributes
from training.corpus.voices import VoiceParameters

SCHEMA_VERSION = 1
SPLITS = ("train", "val", "test")
TABLE_NAME, INFO_NAME = "table.csv", "corpus.json"
VOICE_COLUMNS = tuple(field.name for field in fields(VoiceParameters))
SHARE_COLUMNS = ("african", "asian", "caucasian", "weight", "muscle")
COLUMNS = (
    "id", "split", "sex", "age", "speaker", *VOICE_COLUMNS, "gender", *SHARE_COLUMNS, "hair", "brow", "lashes", "eyes",
    "hair_r", "hair_g", "hair_b", "skin_tone", "stubble", "face_seed", "images", "clips",
)  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """One row. `images` and `clips` are relative to the corpus folder."""

    id: str
    split: str
    sex: str
    speaker: str
    voice: VoiceParameters
    face: FaceAttributes
    images: tuple[str, ...]
    clips: tuple[str, ...]

    @property
    def age(self) -> float:
        """Years, the age the face is drawn with."""
        return self.face.age


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk: its folder, its rows ordered by id, and corpus.json as it was read."""

    root: Path
    identities: tuple[Identity, ...]
    info: Mapping[str, Any]

    def split(self, name: str) -> tuple[Identity, ...]:
        """The rows of one split: train, val or test."""
        if name not in SPLITS:
            raise CorpusInvalid(f"split {name!r} is unknown; choose one of {', '.join(SPLITS)}")
        return tuple(identity for identity in self.identities if identity.split == name)

    def image_paths(self, identity: Identity) -> tuple[Path, ...]:
        """Portrait files of a row."""
        return tuple(self.root / name for name in identity.images)

    def clip_paths(self, identity: Identity) -> tuple[Path, ...]:
        """Clip files of a row."""
        return tuple(self.root / name for name in identity.clips)


def to_row(identity: Identity) -> dict[str, str]:
    """The row as text; floats keep six significant digits, so that a row reads back the same everywhere."""
    face = identity.face
    row: dict[str, Any] = {"id": identity.id, "split": identity.split, "sex": identity.sex, "age": face.age}
    row["speaker"] = identity.speaker
    row |= {name: getattr(identity.voice, name) for name in VOICE_COLUMNS}
    row["gender"] = face.sex
    row |= {name: getattr(face, name) for name in SHARE_COLUMNS}
    row |= {"hair": face.hair, "brow": face.brow, "lashes": face.lashes, "eyes": face.eyes}
    row |= dict(zip(("hair_r", "hair_g", "hair_b"), face.hair_colour, strict=True))
    row |= {"skin_tone": face.skin_tone, "stubble": face.stubble, "face_seed": face.seed}
    row |= {"images": ";".join(identity.images), "clips": ";".join(identity.clips)}
    row |= {name: face.sliders[name] for name in sorted(face.sliders)}
    return {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in row.items()}


def from_row(row: Mapping[str, str]) -> Identity:
    """The identity of a row; KeyError or ValueError where a column is missing or no number."""
    number = {
        name: float(row[name]) for name in (*VOICE_COLUMNS, *SHARE_COLUMNS, "age", "gender", "skin_tone", "stubble")
    }
    if row["split"] not in SPLITS or row["sex"] not in {"F", "M"}:
        raise ValueError(f"split {row['split']!r} or sex {row['sex']!r} is unknown")
    face = FaceAttributes(
        sex=number["gender"], age=number["age"], **{name: number[name] for name in SHARE_COLUMNS},
        sliders={name: float(value) for name, value in row.items() if "/" in name},
        hair=row["hair"], brow=row["brow"], lashes=row["lashes"], eyes=row["eyes"],
        hair_colour=(float(row["hair_r"]), float(row["hair_g"]), float(row["hair_b"])),
        skin_tone=number["skin_tone"], stubble=number["stubble"], seed=int(row["face_seed"]),
    )  # fmt: skip
    return Identity(
        row["id"], row["split"], row["sex"], row["speaker"], VoiceParameters(*(number[name] for name in VOICE_COLUMNS)),
        face, _files(row["images"]), _files(row["clips"]),
    )  # fmt: skip


def write_table(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write table.csv at once or not at all; slider columns are the union over the rows, sorted, absent ones 0."""
    listed = list(rows)
    sliders = sorted({name for row in listed for name in row} - set(COLUMNS))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *sliders], restval="0", lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    write_atomic(path, text.getvalue().encode())


def read_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Read and check a corpus folder. Raises CorpusInvalid: none, incomplete, another schema, a bad row or file."""
    root = Path(path)
    info = _read_info(root)
    table = root / TABLE_NAME
    if not table.is_file():
        raise CorpusInvalid(f"{table}: not found; run the build (`s2f-train corpus`) again to write it")
    with table.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise CorpusInvalid(f"{table}: column {missing[0]!r} is missing; build the corpus again")
        identities = []
        for number, row in enumerate(reader, start=2):
            try:
                identities.append(from_row(row))
            except (KeyError, ValueError, TypeError) as error:
                raise CorpusInvalid(f"{table}:{number}: {error}; build the corpus again") from error
    _check(root, table, identities)
    return Corpus(root, tuple(identities), info)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is either whole or absent, in an existing folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def _read_info(root: Path) -> Mapping[str, Any]:
    path = root / INFO_NAME
    if not path.is_file():
        raise CorpusInvalid(f"{path}: not found; {root} is no corpus, make one with `s2f-train corpus --out {root} …`")
    try:
        info = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise CorpusInvalid(f"{path}: not readable as JSON ({error}); build the corpus again") from error
    if not isinstance(info, dict) or info.get("schema_version") != SCHEMA_VERSION:
        raise CorpusInvalid(f"{path}: not of schema version {SCHEMA_VERSION}; build the corpus again with this release")
    if info.get("complete") is not True:
        raise CorpusInvalid(
            f"{path}: the build did not finish; run the same `s2f-train corpus --out {root} …` again to finish it"
        )
    return info


def _check(root: Path, table: Path, identities: list[Identity]) -> None:
    """Ids unique, splits disjoint by speaker, every file where the row says, inside the folder."""
    home: dict[str, str] = {}
    seen: set[str] = set()
    present = {
        folder: {path.name for path in (root / folder).iterdir()} if (root / folder).is_dir() else set()
        for folder in ("images", "clips")
    }
    for identity in identities:
        if identity.id in seen:
            raise CorpusInvalid(f"{table}: id {identity.id} appears twice; build the corpus again")
        seen.add(identity.id)
        if home.setdefault(identity.speaker, identity.split) != identity.split:
            raise CorpusInvalid(f"{table}: speaker {identity.speaker} is in two splits; build the corpus again")
        for name in (*identity.images, *identity.clips):
            folder, _, file = name.partition("/")
            if file not in present.get(folder, ()):
                raise CorpusInvalid(
                    f"{root / name}: listed in {TABLE_NAME} but not there; run the build again to remake it"
                )
    if not identities:
        raise CorpusInvalid(f"{table}: holds no row; build the corpus again")


def _files(text: str) -> tuple[str, ...]:
    names = tuple(text.split(";"))
    if not all(names):
        raise ValueError("an empty file name in images or clips")
    return names
