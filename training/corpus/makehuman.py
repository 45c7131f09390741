"""Reads a MakeHuman data folder: base mesh, targets, fitted proxies, materials, slider definitions.

Only formats live here; what a head is made of is decided in `head`. Every fault of the folder is a `CorpusInvalid`
that names the file. Units are decimetres, +Y up, +Z out of the face, +X the character's left.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from runtime.errors import CorpusInvalid

CURE = "give the folder that holds MakeHuman's `data` folder, complete (see training/corpus/README.md)"


@dataclass(frozen=True)
class Mesh:
    """verts [V,3] float64, faces [F,4] int (triangles repeat the last vertex), uvs [T,2] (v up), face_uvs [F,4] int."""

    verts: np.ndarray
    faces: np.ndarray
    uvs: np.ndarray
    face_uvs: np.ndarray


@dataclass(frozen=True)
class Fit:
    """How a proxy hangs on the base mesh: three vertices, their weights, an offset, and the three scale rulers."""

    refs: np.ndarray  # int [N,3]
    weights: np.ndarray  # [N,3]
    offsets: np.ndarray  # [N,3]
    rulers: tuple[tuple[int, int, float], ...]  # x, y, z: vertex a, vertex b, denominator


@dataclass(frozen=True)
class Target:
    """A sparse displacement: vertex numbers [N] and their displacements [N,3] in decimetres."""

    index: np.ndarray
    delta: np.ndarray


def find_data(folder: str | Path) -> Path:
    """The `data` folder of `folder` (or `folder` itself). Raises CorpusInvalid where there is no base mesh."""
    folder = Path(folder)
    for candidate in (folder / "data", folder):
        if (candidate / "3dobjs" / "base.obj").is_file():
            return candidate
    raise CorpusInvalid(f"no MakeHuman data folder at {folder}: data/3dobjs/base.obj is not there; {CURE}")


def read_text(path: Path) -> str:
    """The whole text file. Raises CorpusInvalid if it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CorpusInvalid(f"cannot read {path}: {error.strerror or error}; {CURE}") from error


def read_obj(path: Path) -> Mesh:
    """Wavefront OBJ with `f v/vt ...` faces of three or four corners."""
    verts: list[list[float]] = []
    uvs: list[list[float]] = []
    faces: list[list[int]] = []
    face_uvs: list[list[int]] = []
    try:
        for line in read_text(path).splitlines():
            if line.startswith("v "):
                verts.append([float(t) for t in line.split()[1:4]])
            elif line.startswith("vt "):
                uvs.append([float(t) for t in line.split()[1:3]])
            elif line.startswith("f "):
                corners = [c.split("/") for c in line.split()[1:]]
                corners += corners[-1:] * (4 - len(corners))
                faces.append([int(c[0]) - 1 for c in corners[:4]])
                face_uvs.append([int(c[1]) - 1 for c in corners[:4]])
    except (ValueError, IndexError) as error:
        raise CorpusInvalid(f"damaged mesh {path}: {error}; {CURE}") from error
    mesh = Mesh(np.array(verts), np.array(faces, np.int64), np.array(uvs), np.array(face_uvs, np.int64))
    if not faces or mesh.faces.max() >= len(verts) or mesh.face_uvs.max() >= len(uvs) or mesh.faces.min() < 0:
        raise CorpusInvalid(f"damaged mesh {path}: no faces, or faces name vertices it lacks; {CURE}")
    return mesh


def read_target(path: Path, vertices: int) -> Target:
    """One .target: lines `vertex dx dy dz`. `vertices` bounds the vertex numbers."""
    text = read_text(path)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#")) if "#" in text else text
    try:
        rows = np.array(body.split(), np.float64).reshape(-1, 4)
    except ValueError as error:
        raise CorpusInvalid(f"damaged target {path}: {error}; {CURE}") from error
    index = rows[:, 0].astype(np.int64)
    if len(index) and (index.min() < 0 or index.max() >= vertices):
        raise CorpusInvalid(f"target {path} moves vertex {index.max()}, the base mesh has {vertices}; {CURE}")
    return Target(index, rows[:, 1:])


def read_proxy(path: Path, vertices: int) -> tuple[Mesh, Fit]:
    """A .mhclo and its .obj. The obj's own positions are ignored."""
    keys: dict[str, list[str]] = {}
    rows: list[list[float]] = []
    try:
        for line in read_text(path).splitlines():
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if re.fullmatch(r"\d+", words[0]):
                numbers = [float(w) for w in words]
                rows.append(numbers if len(numbers) == 9 else [numbers[0]] * 3 + [1.0] + [0.0] * 5)
            else:
                keys[words[0]] = words[1:]
        mesh = read_obj(path.parent / keys["obj_file"][0])
        rulers = tuple(
            (int(keys[k][0]), int(keys[k][1]), float(keys[k][2])) if k in keys else (0, 0, 0.0)
            for k in ("x_scale", "y_scale", "z_scale")
        )
    except (KeyError, ValueError, IndexError) as error:
        raise CorpusInvalid(f"damaged proxy {path}: {error!r}; {CURE}") from error
    table = np.array(rows, np.float64).reshape(-1, 9)
    refs = table[:, :3].astype(np.int64)
    if len(table) != len(mesh.verts) or refs.max(initial=0) >= vertices:
        raise CorpusInvalid(f"proxy {path} fits {len(table)} vertices, its mesh has {len(mesh.verts)}; {CURE}")
    return mesh, Fit(refs, table[:, 3:6], table[:, 6:9], rulers)


def fit_proxy(fit: Fit, verts: np.ndarray) -> np.ndarray:
    """Positions [N,3] of a proxy on the deformed base mesh `verts` (rulers are measured on the deformed mesh)."""
    scale = [abs(verts[a, k] - verts[b, k]) / d if d else 1.0 for k, (a, b, d) in enumerate(fit.rulers)]
    return np.einsum("nk,nkd->nd", fit.weights, verts[fit.refs]) + fit.offsets * np.array(scale)


def material_texture(path: Path) -> Path | None:
    """The diffuse texture an .mhmat names, or None if it names none or the file is not there."""
    for line in read_text(path).splitlines():
        words = line.split(maxsplit=1)
        if len(words) == 2 and words[0] == "diffuseTexture":
            texture = path.parent / words[1].strip()
            return texture if texture.is_file() else None
    return None


def read_texture(path: Path, largest: int) -> np.ndarray:
    """RGBA float32 [H,W,4] in 0..1 (sRGB), reduced by whole box means until no side exceeds `largest`."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGBA"), np.float32) / 255.0
    except OSError as error:
        raise CorpusInvalid(f"cannot read texture {path}: {error}; {CURE}") from error
    while max(pixels.shape[:2]) > largest:
        h, w = (pixels.shape[0] // 2) * 2, (pixels.shape[1] // 2) * 2
        quads = pixels[:h, :w].reshape(h // 2, 2, w // 2, 2, 4)
        alpha = quads[..., 3:].sum((1, 3))
        colour = (quads[..., :3] * quads[..., 3:]).sum((1, 3)) / np.maximum(alpha, 1e-6)
        plain = quads[..., :3].mean((1, 3))
        pixels = np.concatenate([np.where(alpha > 1e-3, colour, plain), alpha / 4], -1)
    return np.ascontiguousarray(pixels, np.float32)


def _modifiers(data: Path) -> list[tuple[str, str, str | None, str | None]]:
    """(group, target, min word, max word) of every slider definition, and the left-right pairs of the `asym` folder."""
    path = data / "modifiers" / "modeling_modifiers.json"
    try:
        groups = json.loads(read_text(path))
        found = [
            (g["group"], m["target"], m.get("min"), m.get("max"))
            for g in groups
            for m in g["modifiers"]
            if "target" in m
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusInvalid(f"damaged slider definitions {path}: {error!r}; {CURE}") from error
    for left in sorted((data / "targets" / "asym").glob("*-l.target")):
        found.append(("asym", left.name[: -len("-l.target")], "l", "r"))
    return list(dict.fromkeys(found))


def slider_files(data: Path) -> dict[str, list[tuple[Path | None, Path]]]:
    """Slider name -> its (negative, positive) target files; one pair, or a left and a right pair.

    The name is `group/target`, with the positive direction appended unless it is `incr` (so the three axes of `nose-
    trans` differ), and without the side. MakeHuman's `group/target-min|max` and the sided names are listed too, but
    not by `logical_sliders`.
    """
    table: dict[str, list[tuple[Path | None, Path]]] = {}
    for group, target, low, high in _modifiers(data):
        folder = data / "targets" / group
        positive = folder / (f"{target}-{high}.target" if high else f"{target}.target")
        negative = folder / f"{target}-{low}.target" if low else None
        if not positive.is_file() or (negative is not None and not negative.is_file()):
            continue
        suffix = "" if high in (None, "incr", "r") else f"-{high}"
        names = {f"{group}/{target}{suffix}", f"{group}/{target}-{low}|{high}" if low else f"{group}/{target}"}
        for name in sorted(names):
            table.setdefault(name, []).append((negative, positive))
        if target[:2] in ("l-", "r-"):
            table.setdefault(f"{group}/{target[2:]}{suffix}", []).append((negative, positive))
    if not table:
        raise CorpusInvalid(f"no slider of {data / 'modifiers'} has its target files under {data / 'targets'}; {CURE}")
    return table


def logical_sliders(files: dict[str, list[tuple[Path | None, Path]]]) -> dict[str, float]:
    """The symmetric names with their lower end (-1, or 0 for single-ended ones), sorted."""
    names = (n for n in files if "|" not in n and n.split("/")[1][:2] not in ("l-", "r-"))
    return {n: (0.0 if files[n][0][0] is None else -1.0) for n in sorted(names)}


def macro_weights(name: str, values: dict[str, float]) -> float:
    """Product of the values of the words in a macro target's name; `universal` counts as one."""
    weight = 1.0
    for word in name.split("-"):
        weight *= values.get(word, 1.0 if word == "universal" else 0.0)
    return weight


def macro_values(
    sex: float, age: float, shares: tuple[float, float, float], muscle: float, weight: float
) -> dict[str, float]:
    """Word -> value for `macro_weights`. sex 0 female..1 male; age in years 1..90; shares african, asian, caucasian."""
    a = (age - 1) / 48 if age < 25 else 0.5 + (age - 25) / 130
    a = min(max(a, 0.0), 1.0)
    total = sum(shares) or 1.0
    values = dict(zip(("african", "asian", "caucasian"), (s / total for s in shares), strict=True))
    values |= {"female": 1 - sex, "male": sex}
    if a < 0.5:
        baby, young = max(0.0, 1 - 5.333 * a), max(0.0, 3.2 * (a - 0.1875))
        values |= {"baby": baby, "young": young, "child": max(0.0, min(1.0, 5.333 * a) - young), "old": 0.0}
    else:
        values |= {"baby": 0.0, "child": 0.0, "old": 2 * a - 1, "young": 2 - 2 * a}
    for word, x in (("muscle", muscle), ("weight", weight)):
        high, low = max(0.0, 2 * x - 1), max(0.0, 1 - 2 * x)
        values |= {f"max{word}": high, f"min{word}": low, f"average{word}": 1 - high - low}
    return values
