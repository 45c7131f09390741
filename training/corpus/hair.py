"""What grows and what is worn: hair styles, brows, lashes, eye and teeth textures of a data folder, and light on hair.

Hair textures keep only their strands' relative brightness; the colour comes from the face's attributes. Light on hair
follows Kajiya & Kay (1989): highlights depend on the strand's direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.errors import CorpusInvalid, InvalidArgument
from training.corpus import makehuman, raster
from training.corpus.attributes import Catalogue, FaceAttributes
from training.corpus.fur import Fur, grow
from training.corpus.head import Head
from training.corpus.skin import smoothstep, to_linear

FEMALE = ("bob02", "braid01", "long01", "ponytail01", "short03")
MALE = ("short01", "short02", "short04")
GROWN_FEMALE = ("curls", "afro")
GROWN_MALE = ("crop", "curls", "afro")
PAINTED = {
    "": 0.0,
    "shaved": 0.45,
    "buzz": 0.92,
    "receding": 0.88,
}  # painted on the scalp, no geometry; value: how dense
UNDER = {
    "crop": 0.95,
    "curls": 0.96,
    "afro": 0.97,
    "braid01": 0.9,
    "ponytail01": 0.9,
}  # paint under a style's geometry; others 0.8
# Styles that hide an eye are cut in front of the face: (height, half width) of the cut in rest space, dm.
FRINGE = {"bob02": (7.66, 0.59), "short03": (7.66, 0.80)}


def hair_colour(face: FaceAttributes) -> np.ndarray:
    """Linear RGB of the hair, greyed with age (from about 45; how early is drawn from the seed)."""
    rng = np.random.Generator(np.random.Philox(key=face.seed & (2**63 - 1), counter=7))
    grey = float(smoothstep(42, 82, face.age + rng.normal(0, 6))) ** 1.3
    if rng.random() < 0.45:
        grey *= 0.3 + 0.7 * face.sex  # many women dye it
    silver = to_linear(np.array([0.74, 0.73, 0.71]))
    return to_linear(np.array(face.hair_colour)) * (1 - grey) + silver * grey


Caster = tuple[np.ndarray, np.ndarray, np.ndarray]  # what throws shadow: tris [T,3], uvs [T,3,2], alpha [h,w]


@dataclass(frozen=True)
class Style:
    """A hair style with geometry: texture [H,W,4] (brightness around 1 in rgb, alpha), cut [N] and gain as
    `raster.blend_layer` takes them.
    """

    part: str
    texture: np.ndarray
    tris: np.ndarray
    uvs: np.ndarray
    cut: np.ndarray
    gain: float = 1.0
    fur: Fur | None = None

    def points(self, head: Head, verts: np.ndarray) -> np.ndarray:
        """Model-space vertices [N,3] on a blended head."""
        return (
            head.proxy_points(self.part, verts)
            if self.fur is None
            else self.fur.points(head.skin_points(verts), head.skin.tris)
        )

    def caster(self) -> Caster:
        """What throws shadow: the strips that are not cut away, or one shell."""
        if self.fur is not None:
            return self.fur.caster, np.zeros((1, 3, 2), np.float32), np.ones((1, 1), np.float32)
        keep = self.cut[self.tris].mean(1) < 0.5
        return self.tris[keep], self.uvs[keep], np.ascontiguousarray(self.texture[..., 3])


@dataclass(frozen=True)
class Lighting:
    """What lights the strands: lights [3,3], colours [5,3], the key's depth map and the matrix to it."""

    lights: np.ndarray
    colours: np.ndarray
    depth: np.ndarray
    to_map: np.ndarray


def light_strands(
    style: Style, points: np.ndarray, *, sky: np.ndarray, colour: np.ndarray, lit: Lighting, camera: float
) -> tuple[np.ndarray, np.ndarray]:
    """(diffuse [N,3], shine [N,3]) of a style's vertices in view space. sky [N]: open-sky share; camera: its z."""
    lights, colours = lit.lights, lit.colours
    normal = _volume_normals(points, style.tris)
    in_map = (points @ lit.to_map[:, :3].T + lit.to_map[:, 3]).astype(np.float32)
    shadow = raster.vertex_light(lit.depth, in_map, 0.12, 2)
    key = np.clip((normal @ lights[0] + 0.25) / 1.25, 0, None) * (0.25 + 0.75 * shadow)
    fill = np.clip((normal @ lights[1] + 0.4) / 1.4, 0, None)
    rim = np.clip(normal @ lights[2], 0, None) ** 2
    up = 0.5 + 0.5 * normal[:, 1:2]
    deep = (0.15 + 0.85 * sky)[:, None]
    ambient = colours[4] + (colours[3] - colours[4]) * up
    diffuse = key[:, None] * colours[0] + fill[:, None] * colours[1] + ambient + 0.8 * rim[:, None] * colours[2]
    if style.fur is not None:
        depth_in = style.fur.brightness[:, None]
        return (diffuse * deep * (colour + 0.012) * depth_in).astype(np.float32), np.zeros_like(points)
    tangent = raster.strand_tangents(points, style.tris, style.uvs)
    view = np.array([0.0, 0.0, camera]) - points
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    shine = np.zeros_like(diffuse)
    for light, tint, seen, power, amount, shift in (
        (lights[0], colours[0], shadow, 26.0, 0.16, 0.10), (lights[0], colours[0], shadow, 9.0, 0.35, -0.12),
        (lights[2], colours[2], sky, 12.0, 0.25, 0.0), (lights[1], colours[1], sky, 12.0, 0.12, 0.05),
    ):  # fmt: skip
        half = view + light
        half /= np.linalg.norm(half, axis=1, keepdims=True) + 1e-6
        shifted = tangent + shift * normal
        shifted /= np.linalg.norm(shifted, axis=1, keepdims=True) + 1e-6
        sine = np.sqrt(np.clip(1 - (shifted * half).sum(1) ** 2, 0, 1))
        strength = sine**power * seen * np.clip(normal @ light + 0.3, 0, 1) * amount
        shine += strength[:, None] * tint * (0.09 + 0.75 * np.sqrt(colour))
    return (diffuse * deep * colour).astype(np.float32), (shine * deep * 0.35).astype(np.float32)


def _volume_normals(points: np.ndarray, tris: np.ndarray) -> np.ndarray:
    """Outward unit normals [N,3] of hair: the strip's own, mixed with the direction from the head's middle."""
    out = points - np.array([0.0, 0.1, -0.75], np.float32)
    out /= np.linalg.norm(out, axis=1, keepdims=True) + 1e-6
    normal = raster.vertex_normals(points, tris)
    normal *= np.where((normal * out).sum(1) < 0, -1.0, 1.0)[:, None]
    normal = 0.55 * normal + 0.45 * out
    return normal / (np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6)


def _strand_texture(pixels: np.ndarray) -> np.ndarray:
    """RGBA sRGB to (relative brightness x3, alpha): luminance over its mean where opaque, contrast softened."""
    linear = to_linear(pixels[..., :3]) @ np.array([0.3, 0.55, 0.15])
    solid = pixels[..., 3] > 0.5
    mean = linear[solid].mean() if solid.any() else 1.0
    relative = np.clip((linear / max(mean, 1e-4) + 0.02) ** 0.55, 0.2, 1.7)
    relative /= relative[solid].mean() if solid.any() else 1.0
    return np.concatenate([np.repeat(relative[..., None], 3, -1), pixels[..., 3:]], -1).astype(np.float32)


def _grown(fur: Fur) -> Style:
    return Style("", fur.texture, fur.tris, fur.uvs, fur.cut, fur.gain, fur)


class HairSet:
    """Textures of everything a head wears; read once."""

    def __init__(self, head: Head, scalp: np.ndarray, beard: np.ndarray) -> None:
        """scalp, beard [V]: distance inside the hairline and inside the beard's border, in dm."""
        self.head = head
        self._solid: tuple[np.ndarray, ...] | None = None
        self._styles = {
            name.split("/")[1]: self._read_style(name)
            for name, part in head.parts.items() if name.startswith("hair/") and part.texture
        }  # fmt: skip
        for name in sorted({*GROWN_FEMALE, *GROWN_MALE}):
            self._styles[name] = _grown(grow(name, head, scalp))
        self.beard = _grown(grow("beard", head, beard))
        self.small = {
            name: makehuman.read_texture(part.texture, 256)
            for name, part in head.parts.items() if name.split("/")[0] in ("eyebrows", "eyelashes") and part.texture
        }  # fmt: skip
        self._eyes = self._read_eyes()
        path = makehuman.material_texture(head.data / "teeth" / "materials" / "teeth.mhmat")
        if path is None:
            raise CorpusInvalid(
                f"{head.data}/teeth/materials/teeth.mhmat names no texture that is there; {makehuman.CURE}"
            )
        teeth = makehuman.read_texture(path, 256)
        self.teeth = np.concatenate([to_linear(teeth[..., :3]), teeth[..., 3:]], -1).astype(np.float32)

    def _read_style(self, name: str) -> Style:
        part = self.head.parts[name]
        if part.texture is None:
            raise CorpusInvalid(f"hair {name} has no texture; {makehuman.CURE}")
        x, y, z = self.head.proxy_points(name, self.head.rest).T
        line = FRINGE.get(name.split("/")[1])
        cut = np.zeros(len(x))
        if line is not None:
            height, width = line
            cut = smoothstep(height + 0.06, height - 0.08, y) * smoothstep(width + 0.07, width - 0.07, abs(x))
            cut *= smoothstep(0.85, 1.0, z)
        texture = _strand_texture(makehuman.read_texture(part.texture, 512))
        return Style(name, texture, part.tris, part.uvs, cut.astype(np.float32))

    def _read_eyes(self) -> dict[str, np.ndarray]:
        """Eye textures by colour, linear, the white made a little whiter (the originals are pinkish grey)."""
        found = {}
        for material in sorted((self.head.data / "eyes" / "materials").glob("*.mhmat")):
            path = makehuman.material_texture(material)
            if path is None:
                continue
            pixels = makehuman.read_texture(path, 512)
            linear = to_linear(pixels[..., :3])
            pale = smoothstep(0.35, 0.6, linear.min(-1))[..., None]
            grey = linear @ np.array([0.3, 0.59, 0.11])
            iris = linear * 0.55 + grey[..., None] * np.array([0.42, 0.38, 0.34])
            iris /= 1 + 2.6 * grey[..., None]
            linear = np.where(pale > 0, linear, iris)
            linear = linear * (1 - 0.5 * pale) + np.array([0.80, 0.78, 0.76]) * 0.5 * pale
            found[material.stem] = np.concatenate([linear, pixels[..., 3:]], -1).astype(np.float32)
        if not found:
            raise CorpusInvalid(f"{self.head.data}/eyes/materials has no eye colour; {makehuman.CURE}")
        return found

    def catalogue(self, sliders: dict[str, float], expressions: tuple[str, ...]) -> Catalogue:
        """Names of everything drawable."""
        have = self._styles
        return Catalogue(
            tuple(n for n in (*FEMALE, *GROWN_FEMALE) if n in have),
            (*(n for n in (*MALE, *GROWN_MALE) if n in have), *PAINTED),
            tuple(n.split("/")[1] for n in self.small if n.startswith("eyebrows/")),
            tuple(n.split("/")[1] for n in self.small if n.startswith("eyelashes/")),
            tuple(self._eyes), sliders, expressions,
        )  # fmt: skip

    def check(self, face: FaceAttributes) -> None:
        """Raises InvalidArgument for a name the folder does not have."""
        c = self.catalogue({}, ())
        for kind, name, known in (
            ("hair style", face.hair, (*self._styles, *PAINTED)), ("brow", face.brow, (*c.brows, "")),
            ("lashes", face.lashes, (*c.lashes, "")), ("eye colour", face.eyes, c.eye_colours),
        ):  # fmt: skip
            if name not in known:
                raise InvalidArgument(
                    f"no {kind} {name!r} in {self.head.data}; choose one of {', '.join(map(repr, known))}"
                )

    def solid(self, build: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """The solid parts' triangles, built at the first call."""
        if self._solid is None:
            self._solid = build()
        return self._solid

    def style(self, name: str) -> Style | None:
        """The style's geometry, or None for a painted one."""
        return self._styles.get(name)

    def paint_density(self, name: str) -> float:
        """0..1: how densely hair is painted on the scalp."""
        return PAINTED[name] if name in PAINTED else UNDER.get(name, 0.8)

    def eye_texture(self, name: str) -> np.ndarray:
        """Linear RGBA."""
        return self._eyes[name]

    def small_layers(self, face: FaceAttributes, colour: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray, float]]:
        """(part, texture whose rgb is 1, linear tint, pull towards the camera in dm) of brows and lashes."""
        c = self.catalogue({}, ())
        layers = []
        for folder, name, names, tint, bias in (
            ("eyebrows", face.brow, c.brows, colour * 0.40, 0.06),
            ("eyelashes", face.lashes, c.lashes, 0.01 + colour * 0.03, 0.02),
        ):  # fmt: skip
            if names:
                part = f"{folder}/{name or names[0]}"
                texture = self.small[part].copy()
                texture[..., :3] = 1.0
                if folder == "eyebrows":
                    texture[..., 3] **= 0.75  # strands thinner than a pixel fade more than they should
                else:
                    texture[..., 3] *= 0.75 - 0.4 * face.sex
                layers.append((part, texture, tint, bias))
        return layers
