"""Portraits from attributes: `Renderer(data_dir).render(face, view)`.

The order of one picture: blend and smooth the head, pose it, find what is visible, cast the key light's depth map,
describe the surfaces, light them, lay brows, lashes and hair over them, reduce to size in linear light. The same
attributes give the same bytes: a change that alters them raises `attributes.RENDER_VERSION`. View space: origin between
the eyes, x to the picture's right, y up, z towards the camera; decimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import InvalidArgument
from training.corpus import raster, shade
from training.corpus import skin as skin_
from training.corpus.attributes import Catalogue, FaceAttributes, ViewAttributes
from training.corpus.hair import HairSet, Lighting, Style, hair_colour, light_strands
from training.corpus.head import Head
from training.corpus.scene import (
    Camera,
    bake_sky,
    build_scene,
    depth_map,
    light_setup,
    look_from,
    pose_points,
)  # fmt: skip

SUPERSAMPLING = 2
BEARD_FROM = 0.6  # stubble above this is long enough to stand off the skin


@dataclass(frozen=True)
class Canvas:
    """The picture so far: linear RGB [S,S,3] and the depth of what is drawn [S,S]."""

    image: np.ndarray
    zbuf: np.ndarray


class Renderer:
    """Draws portraits of `size` x `size` pixels. Building one takes some seconds; it may be shared by threads once
    built.
    """

    def __init__(self, data_dir: str | Path, size: int = 256) -> None:
        if not 32 <= size <= 1024:
            raise InvalidArgument(f"portrait size {size} is outside 32..1024; choose a size in that range")
        self.size = size
        self.head = Head(data_dir)
        self.skin = skin_.build_skin_map(self.head)
        self.noise = skin_.noise_tiles()
        self.creases = skin_.crease_map()
        self.hair = HairSet(self.head, self.skin.scalp, self.skin.beard_border)
        self._sky: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def catalogue(self) -> Catalogue:
        """What this data folder can draw."""
        return self.hair.catalogue(dict(self.head.sliders), self.head.expressions)

    def sky(self, style: str) -> tuple[np.ndarray, np.ndarray]:
        """Open-sky shares of the skin, eyes and teeth [V], and of the hair [N], with this hair on a neutral head; kept
        per style.
        """
        if style not in self._sky:
            self._sky[style] = bake_sky(self.head, self.hair, style)
        return self._sky[style]

    def render(self, face: FaceAttributes, view: ViewAttributes) -> np.ndarray:
        """uint8 [size, size, 3] sRGB."""
        self.hair.check(face)
        full = self.size * SUPERSAMPLING
        rng = np.random.Generator(np.random.Philox(face.seed & (2**63 - 1)))
        verts = self.head.blend(face, view.expression)
        camera = look_from(self.head, self.head.blend(face, {}), view, full)
        scene = build_scene(
            self.head, self.hair, self.skin, face, view, verts=verts, camera=camera, rng=rng, sky=self.sky(face.hair)[0]
        )
        zbuf = np.full((full, full), raster.FAR, np.float32)
        ids = np.full((full, full), -1, np.int32)
        bary = np.zeros((full, full, 2), np.float32)
        raster.raster_visible(scene.points, scene.tris, zbuf, ids, bary)
        lights, colours = light_setup(view)
        hair_points = self._hair_points(face, verts, camera)
        depth, to_map = depth_map(scene, lights[0], self.hair.style(face.hair), hair_points)
        image = _background(view, full)
        gbuf = np.full((full, full, 16), -1.0, np.float32)
        shade.surface(
            ids, bary, scene.tris, scene.uvs, scene.attr, scene.ranges, self.hair.eye_texture(face.eyes),
            self.hair.teeth, self.noise, self.creases, np.array(skin_.WRINKLE_BOX, np.float32), scene.detail,
            scene.paint, gbuf,
        )  # fmt: skip
        shade.shade(gbuf, ids, lights, colours, to_map, depth, camera.distance, camera.scale, camera.gaze, image)
        canvas = Canvas(image, zbuf)
        self._small_layers(face, verts, camera, colours, canvas)
        lit = Lighting(lights, colours, depth, to_map)
        self._beard(face, verts, camera, lit, canvas)
        style = self.hair.style(face.hair)
        if style is not None:
            light, shine = light_strands(
                style,
                hair_points,
                sky=self.sky(face.hair)[1],
                colour=hair_colour(face),
                lit=lit,
                camera=camera.distance,
            )
            screen = camera.project(hair_points)
            self._draw(screen, style, light, shine, canvas)
        return develop(image, self.size)

    def _hair_points(self, face: FaceAttributes, verts: np.ndarray, camera: Camera) -> np.ndarray:
        style = self.hair.style(face.hair)
        if style is None:
            return np.zeros((0, 3), np.float32)
        return pose_points(style.points(self.head, verts), camera)

    def _small_layers(
        self, face: FaceAttributes, verts: np.ndarray, camera: Camera, colours: np.ndarray, canvas: Canvas
    ) -> None:
        """Brows and lashes over the lit head; so thin that one light does for all of their vertices."""
        for name, texture, tint, bias in self.hair.small_layers(face, hair_colour(face)):
            part = self.head.parts[name]
            screen = camera.project(pose_points(self.head.proxy_points(name, verts), camera))
            light = np.repeat((tint * (0.25 * colours[0] + 0.6 * colours[3]))[None], len(screen), 0).astype(np.float32)
            none = np.zeros_like(light)
            order = _back_to_front(screen, part.tris)
            raster.blend_layer(
                screen,
                part.tris,
                order,
                part.uvs,
                texture,
                light,
                none,
                none[:, 0].copy(),
                1.0,
                canvas.zbuf,
                canvas.image,
                raster.BOTH,
                bias,
            )

    def _beard(self, face: FaceAttributes, verts: np.ndarray, camera: Camera, lit: Lighting, canvas: Canvas) -> None:
        """A grown beard over the painted stubble, where a man's stubble passes BEARD_FROM."""
        length = (face.stubble - BEARD_FROM) / (1 - BEARD_FROM)
        if length <= 0 or face.sex < 0.5:
            return
        style = self.hair.beard
        fur = style.fur
        points = pose_points(fur.points(self.head.skin_points(verts), self.head.skin.tris, length), camera)
        sky = np.tile(self.sky(face.hair)[0][fur.own], len(fur.reach) // len(fur.own))
        light, shine = light_strands(
            style, points, sky=sky, colour=hair_colour(face) * 0.85, lit=lit, camera=camera.distance
        )
        self._draw(camera.project(points), style, light, shine, canvas)

    @staticmethod
    def _draw(screen: np.ndarray, style: Style, light: np.ndarray, shine: np.ndarray, canvas: Canvas) -> None:
        """Hair: shells from the skin outwards, strips first where they are solid, then blended back to front."""
        tris = style.tris
        order = np.arange(len(tris)) if style.fur is not None else _back_to_front(screen, tris)
        for mode in (raster.BOTH,) if style.fur is not None else (raster.SOLID, raster.THIN):
            raster.blend_layer(
                screen,
                tris,
                order,
                style.uvs,
                style.texture,
                light,
                shine,
                style.cut,
                style.gain,
                canvas.zbuf,
                canvas.image,
                mode,
                0.0,
            )


def _back_to_front(screen: np.ndarray, tris: np.ndarray) -> np.ndarray:
    return np.argsort(-screen[tris, 2].mean(1), kind="stable").astype(np.int64)


def _background(view: ViewAttributes, full: int) -> np.ndarray:
    """Linear RGB [full,full,3]: the background colour, lighter behind the head on the key's side, darker to the
    corners.
    """
    line = np.linspace(-1, 1, full)
    side = 0.5 * np.sign(view.key_azimuth)
    fall = np.outer(np.exp(-0.5 * (line + 0.15) ** 2), np.exp(-0.45 * (line + side) ** 2)).astype(np.float32)
    return skin_.to_linear(np.array(view.background)).astype(np.float32) * (
        np.float32(0.45) + np.float32(0.75) * fall[..., None]
    )


def develop(image: np.ndarray, size: int) -> np.ndarray:
    """Linear [S,S,3] to sRGB uint8 [size,size,3]: box mean in linear light, a soft shoulder above 0.6, sRGB curve,
    rounding.
    """
    k = image.shape[0] // size
    small = sum(image[y::k, x::k] for y in range(k) for x in range(k)) / np.float32(k * k)
    high = np.maximum(small - 0.6, 0)
    small = np.clip(np.where(small > 0.6, 0.6 + 0.4 * (1 - np.exp(-high / 0.4)), small), 0, 1)
    srgb = np.where(small <= 0.0031308, 12.92 * small, 1.055 * np.maximum(small, 1e-6) ** (1 / 2.4) - 0.055)
    return np.round(srgb * 255).astype(np.uint8)
