"""Portraits from attributes: `Renderer(data_dir).render(face, view)`.

The order of one picture: blend and smooth the head, pose it, find what is visible, cast the key light's depth map, describe the
surfaces, light them, lay brows, lashes and hair over them, reduce to size in linear light. The same attributes give the same bytes.
View space: origin between the eyes, x to the picture's right, y up, z towards the camera; decimetres.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.errors import InvalidArgument
from training.corpus import raster, shade
from training.corpus import skin as skin_
from training.corpus.attributes import Catalogue, FaceAttributes, ViewAttributes
from training.corpus.hair import HairSet, hair_colour
from training.corpus.head import Head
from training.corpus.scene import (
    Camera, Scene, bake_sky, build_scene, depth_map, light_setup, look_from, pose_points,
)  # fmt: skip

SUPERSAMPLING = 2


class Renderer:
    """Draws portraits of `size` x `size` pixels. Building one takes some seconds; it may be shared by threads once built."""

    def __init__(self, data_dir: str | Path, size: int = 256) -> None:
        if not 32 <= size <= 1024:
            raise InvalidArgument(f"portrait size {size} is outside 32..1024; choose a size in that range")
        self.size = size
        self.head = Head(data_dir)
        self.skin = skin_.build_skin_map(self.head)
        self.noise = skin_.noise_tiles()
        self.creases = skin_.crease_map()
        self.hair = HairSet(self.head)
        self._sky: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def catalogue(self) -> Catalogue:
        """What this data folder can draw."""
        return self.hair.catalogue(dict(self.head.sliders), self.head.expressions)

    def sky(self, style: str) -> tuple[np.ndarray, np.ndarray]:
        """Open-sky shares of the skin, eyes and teeth [V], and of the hair [N], with this hair on a neutral head; kept per style."""
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
        scene = build_scene(self.head, self.hair, self.skin, face, view, verts, camera, rng, self.sky(face.hair)[0])
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
            ids, bary, scene.tris, scene.uvs, scene.attr, scene.ranges, self.hair.eye_texture(face.eyes), self.hair.teeth,
            self.noise, self.creases, np.array(skin_.WRINKLE_BOX, np.float32), scene.detail, scene.paint, gbuf,
        )  # fmt: skip
        shade.shade(gbuf, ids, lights, colours, to_map, depth, camera.distance, camera.scale, camera.gaze, image)
        self._layers(face, verts, camera, scene, lights, colours, depth, to_map, zbuf, image, hair_points)
        return develop(image, self.size)

    def _hair_points(self, face: FaceAttributes, verts: np.ndarray, camera: Camera) -> np.ndarray:
        style = self.hair.style(face.hair)
        if style is None:
            return np.zeros((0, 3), np.float32)
        return pose_points(self.head.proxy_points(style.part, verts), camera)

    def _layers(
        self, face: FaceAttributes, verts: np.ndarray, camera: Camera, scene: Scene, lights: np.ndarray, colours: np.ndarray,
        depth: np.ndarray, to_map: np.ndarray, zbuf: np.ndarray, image: np.ndarray, hair_points: np.ndarray,
    ) -> None:  # fmt: skip
        """Brows, lashes and hair over the lit head."""
        colour = hair_colour(face)
        white = np.zeros((0,), np.float32)
        for name, texture, tint, bias in self.hair.small_layers(face, colour):
            part = self.head.parts[name]
            points = pose_points(self.head.proxy_points(name, verts), camera)
            light = np.repeat((tint * (0.25 * colours[0] + 0.6 * colours[3]))[None], len(points), 0).astype(np.float32)
            self._draw(points, part.tris, part.uvs, texture, light, np.zeros_like(light), camera, zbuf, image, bias, blend_all=True)
        style = self.hair.style(face.hair)
        if style is None:
            return
        part = self.head.parts[style.part]
        light, shine = style.light(
            hair_points, part, self.sky(face.hair)[1], colour, lights, colours, camera, depth, to_map, white
        )
        self._draw(hair_points, part.tris, part.uvs, style.texture, light, shine, camera, zbuf, image, 0.0, blend_all=False)

    def _draw(
        self, points: np.ndarray, tris: np.ndarray, uvs: np.ndarray, texture: np.ndarray, light: np.ndarray, shine: np.ndarray,
        camera: Camera, zbuf: np.ndarray, image: np.ndarray, bias: float, *, blend_all: bool,
    ) -> None:  # fmt: skip
        screen = camera.project(points)
        order = np.argsort(-screen[tris].mean(1)[:, 2], kind="stable").astype(np.int64)
        args = (screen, tris, order, uvs, texture, light, shine, zbuf, image)
        raster.blend_layer(*args, not blend_all, bias, 1.0)
        if blend_all:
            return
        raster.blend_layer(*args, False, bias, 1.0)


def _background(view: ViewAttributes, full: int) -> np.ndarray:
    """Linear RGB [full,full,3]: the background colour, lighter behind the head on the key's side, darker to the corners."""
    y, x = np.meshgrid(np.linspace(-1, 1, full), np.linspace(-1, 1, full), indexing="ij")
    side = 0.5 * np.sign(view.key_azimuth)
    fall = np.exp(-(((x + side) ** 2) * 0.45 + (y + 0.15) ** 2 * 0.5))
    return (skin_.to_linear(np.array(view.background)) * (0.45 + 0.75 * fall[..., None])).astype(np.float32)


def develop(image: np.ndarray, size: int) -> np.ndarray:
    """Linear [S,S,3] to sRGB uint8 [size,size,3]: box mean in linear light, a soft shoulder above 0.6, sRGB curve, rounding."""
    k = image.shape[0] // size
    small = image.reshape(size, k, size, k, 3).mean((1, 3))
    high = np.maximum(small - 0.6, 0)
    small = np.clip(np.where(small > 0.6, 0.6 + 0.4 * (1 - np.exp(-high / 0.4)), small), 0, 1)
    srgb = np.where(small <= 0.0031308, 12.92 * small, 1.055 * np.maximum(small, 1e-6) ** (1 / 2.4) - 0.055)
    return np.round(srgb * 255).astype(np.uint8)
