"""What grows and what is worn: hair styles, brows, lashes, eye and teeth textures of a data folder, and light on hair.

Hair textures keep only their strands' relative brightness; the colour comes from the face's attributes. Light on hair follows
Kajiya & Kay (1989): highlights depend on the strand's direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.errors import CorpusInvalid, InvalidArgument
from training.corpus import makehuman, raster
from training.corpus.attributes import Catalogue, FaceAttributes
from training.corpus.head import Head, Part
from training.corpus.skin import smoothstep, to_linear

FEMALE = ("bob01", "bob02", "braid01", "long01", "ponytail01", "short03")
MALE = ("short01", "short02", "short04")
BOTH = ("afro01",)
PAINTED = {"": 0.0, "shaved": 0.45, "buzz": 0.92, "receding": 0.88}  # painted on the scalp, no geometry; value: how dense
UNDER = {"afro01": 0.95, "braid01": 0.9, "ponytail01": 0.9}  # density of the paint under a style's geometry; others 0.8


def hair_colour(face: FaceAttributes) -> np.ndarray:
    """Linear RGB of the hair, greyed with age (from about 35; how early is drawn from the seed)."""
    early = np.random.Generator(np.random.Philox(key=face.seed & (2**63 - 1), counter=7)).normal(0, 7)
    grey = float(smoothstep(38, 74, face.age + early))
    silver = to_linear(np.array([0.74, 0.73, 0.71]))
    return to_linear(np.array(face.hair_colour)) * (1 - grey) + silver * grey


@dataclass(frozen=True)
class Style:
    """A hair style with geometry: its part's name and its texture [H,W,4] (brightness around 1 in rgb, alpha)."""

    part: str
    texture: np.ndarray
    tris: np.ndarray
    uvs: np.ndarray

    def light(
        self, points: np.ndarray, part: Part, sky: np.ndarray, colour: np.ndarray, lights: np.ndarray, colours: np.ndarray,
        camera: object, depth: np.ndarray, to_map: np.ndarray, _: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """(diffuse [N,3], shine [N,3]) per vertex in view space. sky [N]: open-sky share."""
        out = points - np.array([0.0, 0.1, -0.75], np.float32)
        out /= np.linalg.norm(out, axis=1, keepdims=True) + 1e-6
        normal = raster.vertex_normals(points, part.tris)
        normal *= np.where((normal * out).sum(1) < 0, -1.0, 1.0)[:, None]
        normal = 0.55 * normal + 0.45 * out
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6
        tangent = raster.strand_tangents(points, part.tris, part.uvs)
        in_map = (points @ to_map[:, :3].T + to_map[:, 3]).astype(np.float32)
        shadow = raster.vertex_light(depth, in_map, 0.12, 2)
        view = np.array([0.0, 0.0, 14.0]) - points
        view /= np.linalg.norm(view, axis=1, keepdims=True)
        key = np.clip((normal @ lights[0] + 0.25) / 1.25, 0, None) * (0.25 + 0.75 * shadow)
        fill = np.clip((normal @ lights[1] + 0.4) / 1.4, 0, None)
        rim = np.clip(normal @ lights[2], 0, None) ** 2
        up = 0.5 + 0.5 * normal[:, 1]
        ambient = colours[4] + (colours[3] - colours[4]) * up[:, None]
        deep = (0.15 + 0.85 * sky)[:, None]
        diffuse = (key[:, None] * colours[0] + fill[:, None] * colours[1] + ambient) * deep + 0.8 * rim[:, None] * colours[2] * deep
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
            shine += strength[:, None] * tint * (0.25 * 0.35 + 0.75 * np.sqrt(colour))
        return (diffuse * colour).astype(np.float32), (shine * deep * 0.35).astype(np.float32)


def _strand_texture(pixels: np.ndarray) -> np.ndarray:
    """RGBA sRGB to (relative brightness x3, alpha): luminance over its mean where opaque, contrast softened."""
    linear = to_linear(pixels[..., :3]) @ np.array([0.3, 0.55, 0.15])
    solid = pixels[..., 3] > 0.5
    mean = linear[solid].mean() if solid.any() else 1.0
    relative = np.clip((linear / max(mean, 1e-4) + 0.02) ** 0.65, 0.15, 2.2)
    relative /= relative[solid].mean() if solid.any() else 1.0
    return np.concatenate([np.repeat(relative[..., None], 3, -1), pixels[..., 3:]], -1).astype(np.float32)


def _procedural_texture(size: int = 256) -> np.ndarray:
    """Strands for styles without a texture: streaks along v, fully opaque."""
    rng = np.random.Generator(np.random.Philox(77))
    fy, fx = np.fft.fftfreq(size)[:, None] * size, np.fft.fftfreq(size)[None] * size
    band = np.exp(-(((abs(fx) - 40) / 30) ** 2)) * np.exp(-((fy / 6) ** 2))
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) * band).real
    bright = np.clip(1 + 0.3 * field / field.std(), 0.3, 1.9)
    return np.stack([bright, bright, bright, np.ones_like(bright)], -1).astype(np.float32)


class HairSet:
    """Textures of everything a head wears; read once."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._solid: tuple[np.ndarray, ...] | None = None
        self._styles = {
            name.split("/")[1]: Style(
                name,
                _strand_texture(makehuman.read_texture(part.texture, 512)) if part.texture else _procedural_texture(),
                part.tris, part.uvs,
            )
            for name, part in head.parts.items() if name.startswith("hair/")
        }  # fmt: skip
        self.small = {
            name: makehuman.read_texture(part.texture, 256)
            for name, part in head.parts.items() if name.split("/")[0] in ("eyebrows", "eyelashes") and part.texture
        }  # fmt: skip
        self._eyes = self._read_eyes()
        path = makehuman.material_texture(head.data / "teeth" / "materials" / "teeth.mhmat")
        if path is None:
            raise CorpusInvalid(f"{head.data}/teeth/materials/teeth.mhmat names no texture that is there; {makehuman.CURE}")
        teeth = makehuman.read_texture(path, 256)
        self.teeth = np.concatenate([to_linear(teeth[..., :3]), teeth[..., 3:]], -1).astype(np.float32)

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
            linear = linear * (1 - 0.5 * pale) + np.array([0.80, 0.78, 0.76]) * 0.5 * pale
            found[material.stem] = np.concatenate([linear, pixels[..., 3:]], -1).astype(np.float32)
        if not found:
            raise CorpusInvalid(f"{self.head.data}/eyes/materials has no eye colour; {makehuman.CURE}")
        return found

    def catalogue(self, sliders: dict[str, float], expressions: tuple[str, ...]) -> Catalogue:
        """Names of everything drawable."""
        have = self._styles
        return Catalogue(
            tuple(n for n in (*FEMALE, *BOTH) if n in have),
            (*(n for n in (*MALE, *BOTH) if n in have), *PAINTED),
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
                raise InvalidArgument(f"no {kind} {name!r} in {self.head.data}; choose one of {', '.join(map(repr, known))}")

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
            ("eyebrows", face.brow, c.brows, colour * 0.55, 0.06), ("eyelashes", face.lashes, c.lashes, colour * 0.12, 0.02),
        ):  # fmt: skip
            if names:
                part = f"{folder}/{name or names[0]}"
                texture = self.small[part].copy()
                texture[..., :3] = 1.0
                layers.append((part, texture, tint, bias))
        return layers
