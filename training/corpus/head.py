"""The head model: blends targets on the vertices a portrait needs, smooths the skin, fits the proxies.

`Head` is built once from a data folder (about three seconds, mostly reading targets) and is read-only afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from runtime.errors import CorpusInvalid, InvalidArgument
from training.corpus import makehuman
from training.corpus.attributes import FaceAttributes
from training.corpus.makehuman import Fit, Mesh, Target

BODY_VERTICES = 13380  # `body` comes first in base.obj; helpers and joints follow
EYE_HELPERS = ((14598, 14670), (14670, 14742))  # character's left, right
TONGUE_HELPER = (13380, 13606)
LANDMARKS = {  # single vertices of mesh hm08
    "l_eye_inner": 7796, "l_eye_outer": 7782, "r_eye_inner": 1104, "r_eye_outer": 1090, "l_mouth_corner": 7272,
    "r_mouth_corner": 527, "lip_inner_upper": 537, "lip_inner_lower": 540, "nose_tip": 297, "chin_bottom": 991,
    "head_top": 881,
}  # fmt: skip
# UV islands of the atlas as (u0, u1, v0, v1): the inside of the mouth, the right and the left eye socket.
ISLANDS = {
    "cavity": (0.75, 0.93, 0.0, 0.14),
    "r_socket": (0.0, 0.08, 0.54, 0.64),
    "l_socket": (0.08, 0.155, 0.54, 0.64),
}
# MakeHuman's neutral brow reads as a frown; an expression may name these units itself.
RELAXED = {"eyebrows-left-inner-up": 0.35, "eyebrows-right-inner-up": 0.35, "mouth-corner-puller": 0.08}
LOWEST, WIDEST = 4.75, 2.6  # of the base mesh: what a portrait can show of the body, decimetres


@dataclass(frozen=True)
class Part:
    """One drawable mesh: tris [T,3] int32 into its own vertices, uvs [T,3,2] float32, fit to the base mesh (None: the
    skin).
    """

    tris: np.ndarray
    uvs: np.ndarray
    fit: Fit | None
    texture: Path | None = None


def triangulate(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [T,3] int32 and their UVs [T,3,2] float32 of a quad mesh; a triangle's repeated corner is dropped."""
    keep = mesh.faces[:, 2] != mesh.faces[:, 3]
    corners = np.concatenate(
        [np.array([[0, 1, 2]] * len(keep)), np.array([[0, 2, 3]] * int(keep.sum())).reshape(-1, 3)]
    )
    rows = np.concatenate([np.arange(len(keep)), np.flatnonzero(keep)])[:, None]
    tris = mesh.faces[rows, corners].astype(np.int32)
    return tris, mesh.uvs[mesh.face_uvs[rows, corners]].astype(np.float32)


def subdivide(faces: np.ndarray, uvs: np.ndarray, vertices: int) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """One Catmull-Clark step (Catmull & Clark 1978) of quads [F,4] as a matrix.

    Returns (matrix [V', V], quads [4F,4], uvs [4F,4,2]): new points are vertices, then edges, then faces; at a border
    the vertex stays and the edge point is the middle. uvs [F,4,2] are split linearly.
    """
    f = len(faces)
    ends = np.sort(np.stack([faces, np.roll(faces, -1, 1)], -1).reshape(-1, 2), 1)
    edges, edge_of = np.unique(ends, axis=0, return_inverse=True)
    edge_of = edge_of.reshape(f, 4)
    e = len(edges)
    ones = np.ones
    face_pts = sparse.csr_matrix((ones(4 * f) / 4, (np.repeat(np.arange(f), 4), faces.ravel())), (f, vertices))
    touch = sparse.csr_matrix((ones(4 * f), (edge_of.ravel(), np.repeat(np.arange(f), 4))), (e, f))
    inner = np.asarray(touch.sum(1)).ravel() == 2
    middles = sparse.csr_matrix((ones(2 * e) / 2, (np.repeat(np.arange(e), 2), edges.ravel())), (e, vertices))
    edge_pts = (
        sparse.diags(np.where(inner, 0.5, 1.0)) @ middles + sparse.diags(np.where(inner, 0.25, 0.0)) @ touch @ face_pts
    )
    around_f = sparse.csr_matrix((ones(4 * f), (faces.ravel(), np.repeat(np.arange(f), 4))), (vertices, f))
    around_e = sparse.csr_matrix((ones(2 * e), (edges.ravel(), np.repeat(np.arange(e), 2))), (vertices, e))
    n = np.maximum(np.asarray(around_f.sum(1)).ravel(), 1)
    smooth = sparse.diags(1 / n**2) @ (around_f @ face_pts + 2 * (around_e @ middles)) + sparse.diags((n - 3) / n)
    border = np.zeros(vertices, bool)
    border[edges[~inner].ravel()] = True
    vert_pts = sparse.diags(np.where(border, 0.0, 1.0)) @ smooth + sparse.diags(np.where(border, 1.0, 0.0))
    matrix = sparse.vstack([vert_pts, edge_pts, face_pts]).tocsr()
    corner, next_edge = faces, edge_of + vertices
    centre = np.repeat(np.arange(f)[:, None] + vertices + e, 4, 1)
    quads = np.stack([corner, next_edge, centre, np.roll(next_edge, 1, 1)], -1).reshape(-1, 4)
    middle = (uvs + np.roll(uvs, -1, 1)) / 2
    centres = np.repeat(uvs.mean(1, keepdims=True), 4, 1)
    new_uvs = np.stack([uvs, middle, centres, np.roll(middle, 1, 1)], 2).reshape(-1, 4, 2)
    return matrix, quads, new_uvs


class Head:
    """Everything a face is blended from. `verts` arrays below are [A,3], A = the active vertices (`self.active`)."""

    def __init__(self, data_dir: str | Path) -> None:
        self.data = makehuman.find_data(data_dir)
        self.base = makehuman.read_obj(self.data / "3dobjs" / "base.obj")
        if len(self.base.verts) != 19158:
            raise CorpusInvalid(
                f"{self.data}/3dobjs/base.obj has {len(self.base.verts)} vertices, hm08 has 19158; {makehuman.CURE}"
            )
        proxies = self._read_proxies()
        quads = self._body_quads()
        self._number_active(quads, proxies)
        self.parts = {name: self._renumber(part) for name, part in proxies.items()}
        self._smooth_skin(quads)
        self._read_targets()

    def _read_proxies(self) -> dict[str, Part]:
        """All .mhclo under the folders a head wears, by `folder/name`."""
        parts = {}
        for folder in ("hair", "eyebrows", "eyelashes", "eyes", "teeth", "tongue"):
            for path in sorted((self.data / folder).glob("*/*.mhclo")):
                mesh, fit = makehuman.read_proxy(path, len(self.base.verts))
                tris, uvs = triangulate(mesh)
                material = path.with_suffix(".mhmat")
                texture = makehuman.material_texture(material) if material.is_file() else None
                parts[f"{folder}/{path.stem}"] = Part(tris, uvs, fit, texture)
        for needed in ("eyes/high-poly", "teeth/teeth_base"):
            if needed not in parts:
                raise CorpusInvalid(f"{self.data} lacks {needed}.mhclo; {makehuman.CURE}")
        return parts

    def _body_quads(self) -> np.ndarray:
        """Row numbers of the base mesh's faces that a portrait can show."""
        faces = self.base.faces
        body = (faces < BODY_VERTICES).all(1)
        centre = self.base.verts[faces].mean(1)
        return np.flatnonzero(body & (centre[:, 1] > LOWEST) & (abs(centre[:, 0]) < WIDEST))

    def _number_active(self, quads: np.ndarray, proxies: dict[str, Part]) -> None:
        needed = [self.base.faces[quads].ravel(), *(np.arange(a, b) for a, b in (*EYE_HELPERS, TONGUE_HELPER))]
        for part in proxies.values():
            if part.fit is not None:
                needed += [part.fit.refs.ravel(), np.array([r[:2] for r in part.fit.rulers]).ravel()]
        self.active = np.unique(np.concatenate([*needed, list(LANDMARKS.values())]))
        self.slot = np.full(len(self.base.verts), -1)
        self.slot[self.active] = np.arange(len(self.active))
        self.rest = self.base.verts[self.active]

    def _renumber(self, part: Part) -> Part:
        if part.fit is None:
            return part
        rulers = tuple((int(self.slot[a]), int(self.slot[b]), d) for a, b, d in part.fit.rulers)
        fit = Fit(self.slot[part.fit.refs], part.fit.weights, part.fit.offsets, rulers)
        return Part(part.tris, part.uvs, fit, part.texture)

    def _smooth_skin(self, quads: np.ndarray) -> None:
        faces = self.base.faces[quads]
        self.skin_ids, compact = np.unique(faces, return_inverse=True)  # base mesh numbers of the coarse skin
        compact = compact.reshape(faces.shape)
        uvs = self.base.uvs[self.base.face_uvs[quads]]
        matrix, fine, fine_uvs = subdivide(compact, uvs, len(self.skin_ids))
        self.skin_matrix = matrix.astype(np.float32)
        tris = np.concatenate([fine[:, [0, 1, 2]], fine[:, [0, 2, 3]]]).astype(np.int32)
        tri_uvs = np.concatenate([fine_uvs[:, [0, 1, 2]], fine_uvs[:, [0, 2, 3]]]).astype(np.float32)
        self.skin = Part(tris, tri_uvs, None)
        self.skin_slots = self.slot[self.skin_ids]
        self._name_islands(compact, uvs)

    def _name_islands(self, faces: np.ndarray, uvs: np.ndarray) -> None:
        """`inside[name]`: coarse skin vertices of each hidden island; `rims[name]`: its seam with the visible skin."""
        middle = uvs.mean(1)
        self.inside: dict[str, np.ndarray] = {}
        self.rims: dict[str, np.ndarray] = {}
        for name, (u0, u1, v0, v1) in ISLANDS.items():
            own = (middle[:, 0] > u0) & (middle[:, 0] < u1) & (middle[:, 1] > v0) & (middle[:, 1] < v1)
            self.inside[name] = np.unique(faces[own])
            self.rims[name] = np.intersect1d(self.inside[name], faces[~own])

    def _restricted(self, path: Path) -> Target:
        """A target's rows that move active vertices, renumbered."""
        target = makehuman.read_target(path, len(self.base.verts))
        slots = self.slot[target.index]
        return Target(slots[slots >= 0], target.delta[slots >= 0])

    def _read_targets(self) -> None:
        targets = self.data / "targets"
        macro = sorted((targets / "macrodetails").glob("*.target"))
        if len(macro) < 24:
            raise CorpusInvalid(
                f"{targets / 'macrodetails'} has {len(macro)} targets, 24 or more are needed; {makehuman.CURE}"
            )
        adult = [p for p in macro if "baby" not in p.stem]
        self._macro = {p.stem: self._restricted(p) for p in adult}
        files = makehuman.slider_files(self.data)
        self.sliders = makehuman.logical_sliders(files)
        cache: dict[Path | None, Target | None] = {None: None}
        for pair in (p for pairs in files.values() for p in pairs):
            for path in pair:
                if path not in cache and path is not None:
                    cache[path] = self._restricted(path)
        self._sliders = {n: [(cache[low], cache[high]) for low, high in pairs] for n, pairs in files.items()}
        folder = targets / "expression" / "units"
        self.expressions = tuple(sorted(p.stem for p in (folder / "caucasian").glob("*.target")))
        self._units = {
            (race, unit): self._restricted(folder / race / f"{unit}.target")
            for race in ("african", "asian", "caucasian") for unit in self.expressions
            if (folder / race / f"{unit}.target").is_file()
        }  # fmt: skip

    def blend(self, face: FaceAttributes, expression: dict[str, float]) -> np.ndarray:
        """Deformed active vertices [A,3] float64. Raises InvalidArgument for a slider or expression the folder does
        not have.
        """
        shares = (face.african, face.asian, face.caucasian)
        values = makehuman.macro_values(face.sex, face.age, shares, face.muscle, face.weight)
        verts = self.rest.copy()

        def move(target: Target | None, amount: float) -> None:
            if target is not None and amount:
                verts[target.index] += amount * target.delta

        for name, target in self._macro.items():
            move(target, makehuman.macro_weights(name, values))
        for name in sorted(face.sliders):
            if name not in self._sliders:
                raise InvalidArgument(f"no slider {name!r} in {self.data}; Renderer.catalogue().sliders lists them")
            value = face.sliders[name]
            for low, high in self._sliders[name]:
                move(high if value > 0 else low, abs(value))
        expression = {unit: amount for unit, amount in RELAXED.items() if unit in self.expressions} | expression
        for unit in sorted(expression):
            if unit not in self.expressions:
                raise InvalidArgument(
                    f"no expression unit {unit!r} in {self.data}; Renderer.catalogue().expressions lists them"
                )
            for race in ("african", "asian", "caucasian"):
                move(self._units.get((race, unit)), expression[unit] * values[race])
        tongue = self.slot[np.arange(*TONGUE_HELPER)]
        verts[tongue, 1] -= 0.17 * expression.get("mouth-open", 0.0)  # the unit drops the teeth but not the tongue
        return verts

    def skin_points(self, verts: np.ndarray) -> np.ndarray:
        """Smoothed skin [V',3] float32 of blended vertices."""
        return (self.skin_matrix @ verts[self.skin_slots].astype(np.float32)).astype(np.float32)

    def proxy_points(self, name: str, verts: np.ndarray) -> np.ndarray:
        """Vertices [N,3] float32 of the proxy `folder/name` fitted to blended vertices."""
        part = self.parts[name]
        return makehuman.fit_proxy(part.fit, verts).astype(np.float32) if part.fit is not None else verts

    def eye_centres(self, verts: np.ndarray) -> np.ndarray:
        """[2,3]: the character's left and right eyeball centres."""
        return np.stack([verts[self.slot[np.arange(a, b)]].mean(0) for a, b in EYE_HELPERS])

    def landmark(self, name: str, verts: np.ndarray) -> np.ndarray:
        """Position [3] of one of LANDMARKS."""
        return verts[self.slot[LANDMARKS[name]]]
