"""From attributes to geometry in view space: pose, camera, lights, the list of visible surfaces, and what hides the
sky from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.corpus import raster, shade
from training.corpus import skin as skin_
from training.corpus.attributes import FaceAttributes, ViewAttributes
from training.corpus.hair import PAINTED, Caster, HairSet, Style, hair_colour
from training.corpus.head import Head
from training.corpus.skin import SkinMap, smoothstep, to_linear

CAMERA = 14.0  # dm from the eyes: a portrait lens
EYES_AT = 0.485  # of the picture's height, from the top
ZOOM = 0.325  # picture heights per dm on a mean adult head: chin to crown fills about 68 %
MEAN_EYES, MEAN_MOUTH = 0.58, 0.72  # dm between the eyes, and from them down to the mouth, of a mean adult


@dataclass(frozen=True)
class Camera:
    """Pose and projection: model space to view space to pixels."""

    origin: np.ndarray  # [3] between the eyes, model space
    turn: np.ndarray  # [3,3] of the head
    pivot: np.ndarray  # [3] relative to origin: where the neck turns
    scale: float  # pixels per dm at the eyes' depth
    full: int
    shift: np.ndarray  # [2] dm: brings the eyes' middle back to the axis
    gaze: np.ndarray  # [3] unit
    distance: float = CAMERA

    def project(self, points: np.ndarray) -> np.ndarray:
        """View space [V,3] to pixels and depth [V,3] float32."""
        z = self.distance - points[:, 2]
        f = self.scale * self.distance / z
        x = self.full / 2 + points[:, 0] * f
        y = self.full * EYES_AT - points[:, 1] * f
        return np.stack([x, y, z], 1).astype(np.float32)


@dataclass(frozen=True)
class Scene:
    """Opaque surfaces: skin, then eyes, then teeth and tongue."""

    points: np.ndarray  # [V,3] pixels and depth
    tris: np.ndarray
    uvs: np.ndarray
    attr: np.ndarray  # [V, shade.COLUMNS]
    ranges: np.ndarray  # first triangle of eyes, of teeth
    detail: np.ndarray
    paint: np.ndarray


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Degrees to a matrix: yaw about y, pitch about x (positive up), roll about z (positive clockwise)."""
    y, p, r = np.radians([yaw, -pitch, -roll])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rx = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    rz = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return rz @ ry @ rx


def look_from(head: Head, verts: np.ndarray, view: ViewAttributes, full: int) -> Camera:
    """The camera for a face at rest (without its expression): aligned by eyes and mouth."""
    eyes = head.eye_centres(verts)
    origin = eyes.mean(0)
    mouth = (head.landmark("l_mouth_corner", verts) + head.landmark("r_mouth_corner", verts)) / 2
    spread = 0.5 * np.linalg.norm(eyes[0] - eyes[1]) / MEAN_EYES + 0.5 * np.linalg.norm(origin - mouth) / MEAN_MOUTH
    turn = rotation(view.yaw, view.pitch, view.roll)
    pivot = np.array([0.0, -0.6, -1.0])
    shift = (turn @ -pivot + pivot)[:2]
    gaze = rotation(view.yaw * 0.25, view.pitch * 0.3, 0.0) @ np.array([0.0, 0.0, 1.0])
    return Camera(origin, turn, pivot, full * ZOOM / spread, full, shift, gaze)


def pose_points(points: np.ndarray, camera: Camera, follow: np.ndarray | None = None) -> np.ndarray:
    """Model space [V,3] to view space float32. follow [V]: 1 turns with the head, 0 stays with the shoulders."""
    local = points - camera.origin
    turned = (local - camera.pivot) @ camera.turn.T + camera.pivot
    if follow is not None:
        turned = local + follow[:, None] * (turned - local)
    turned[:, :2] -= camera.shift
    return turned.astype(np.float32)


def light_setup(view: ViewAttributes) -> tuple[np.ndarray, np.ndarray]:
    """Directions to key, fill, rim [3,3] and linear colours of key, fill, rim, sky, ground [5,3]."""

    def direction(azimuth: float, elevation: float) -> list[float]:
        a, e = np.radians([azimuth, elevation])
        return [np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)]

    side = -1.0 if view.key_azimuth >= 0 else 1.0
    lights = np.array([
        direction(view.key_azimuth, view.key_elevation), direction(side * 50, 12), direction(side * 140, 40),
    ])  # fmt: skip
    k, f = view.key_strength, view.fill_strength
    colours = np.array([
        [1.08 * k, 1.0 * k, 0.91 * k], [0.62 * f, 0.68 * f, 0.76 * f], [0.40, 0.42, 0.45],
        [0.27, 0.29, 0.32], [0.15, 0.125, 0.11],
    ])  # fmt: skip
    return lights, colours


def _garment(rest: np.ndarray) -> np.ndarray:
    """Signed distance-like height below the neckline of a round-necked shirt, in rest space."""
    x, y, z = rest.T
    line = 5.62 - 0.12 * np.clip(z, -0.5, 1.2) + 0.12 * np.clip(abs(x) - 0.3, 0, 1)
    return line - y


def _details(hair: HairSet, face: FaceAttributes, rng: np.random.Generator) -> np.ndarray:
    """The scalar knobs of `shade._skin_detail`."""
    old = float(smoothstep(28, 78, face.age))
    fair = face.caucasian / max(face.african + face.asian + face.caucasian, 1e-9)
    r = rng.random(8)
    freckles = max(0.0, r[0] - 0.75) * 3.0 * fair * (1 - 0.5 * old) + 0.35 * old * r[1]
    strengths = [old * s for s in (0.55 + 0.8 * r[2], 0.7 + 0.6 * r[3], 0.6 + 0.6 * r[4], 0.45 + 0.6 * r[5])]
    strengths[2] += 0.14
    male = float(smoothstep(0.35, 0.75, face.sex))
    pores = 0.0004 + 0.0004 * old + 0.0002 * face.sex
    bald = 1.0 if face.hair == "receding" else 0.0
    return np.array(
        [
            face.stubble * male,
            hair.paint_density(face.hair),
            freckles,
            *strengths,
            r[6],
            r[7],
            pores,
            0.05 + 0.03 * old,
            bald,
        ],
        np.float32,
    )


def _skin_block(
    head: Head, skin: SkinMap, face: FaceAttributes, verts: np.ndarray, *, camera: Camera, rng: np.random.Generator
) -> np.ndarray:
    """Attributes of the skin's vertices, all but the open sky."""
    rest = skin.rest
    model = head.skin_points(verts)
    follow = smoothstep(5.35, 6.3, rest[:, 1])
    points = pose_points(model, camera, follow)
    normals = raster.vertex_normals(points, head.skin.tris)
    garment = _garment(rest)
    points += (normals * (0.05 * smoothstep(-0.01, 0.03, garment))[:, None]).astype(np.float32)
    attr = np.zeros((len(points), shade.COLUMNS), np.float32)
    attr[:, 0:3], attr[:, 3:6] = points, normals
    attr[:, 6:9] = skin_.vertex_albedo(skin, face, rng)
    attr[:, 10], attr[:, 11], attr[:, 12] = skin.lips, skin.beard, skin.scalp
    attr[:, 13] = 0.55 + 0.35 * skin.zones["t"] + 0.5 * skin.hidden + 0.5 * skin.lids
    attr[:, 14:17], attr[:, 17], attr[:, 18], attr[:, 19] = rest, garment, skin.top, skin.hidden
    return attr


def _eye_block(head: Head, verts: np.ndarray, camera: Camera) -> np.ndarray:
    """Attributes of the eyeballs, turned to look near the camera."""
    name = "eyes/high-poly"
    points = head.proxy_points(name, verts)
    centres = head.eye_centres(verts)
    which = (points[:, 0] < camera.origin[0]).astype(int)
    centre = centres[which]
    posed = pose_points(centre, camera)
    look = _between(camera.turn @ np.array([0.0, 0.0, 1.0]), camera.gaze)
    offset = (points - centre) @ (look @ camera.turn).T
    attr = np.zeros((len(points), shade.COLUMNS), np.float32)
    attr[:, 0:3] = posed + offset
    attr[:, 3:6] = raster.vertex_normals(attr[:, 0:3].copy(), head.parts[name].tris)
    attr[:, 6:9] = 1.0
    attr[:, 14:17] = offset
    return attr


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation [3,3] that takes unit vector a to b (Rodrigues)."""
    axis = np.cross(a, b)
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + k + k @ k / (1 + a @ b)


def _plain_block(
    head: Head, name: str, verts: np.ndarray, camera: Camera, tint: tuple[float, float, float]
) -> np.ndarray:
    points = pose_points(head.proxy_points(name, verts), camera)
    attr = np.zeros((len(points), shade.COLUMNS), np.float32)
    attr[:, 0:3] = points
    attr[:, 3:6] = raster.vertex_normals(points, head.parts[name].tris)
    attr[:, 6:9] = tint
    return attr


def solid_parts(head: Head, hair: HairSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tris, uvs, ranges) of skin, eyes without the glass of the cornea, and teeth, in one vertex numbering."""
    eyes, teeth = head.parts["eyes/high-poly"], head.parts["teeth/teeth_base"]
    texture = hair.eye_texture(hair.catalogue({}, ()).eye_colours[0])
    middle = eyes.uvs.mean(1)
    rows = ((1 - middle[:, 1]) * texture.shape[0]).astype(int) % texture.shape[0]
    columns = (middle[:, 0] * texture.shape[1]).astype(int) % texture.shape[1]
    ball = texture[rows, columns, 3] > 0.5
    skin_vertices = head.skin_matrix.shape[0]
    eye_vertices = int(eyes.tris.max()) + 1
    tris = np.concatenate([head.skin.tris, eyes.tris[ball] + skin_vertices, teeth.tris + skin_vertices + eye_vertices])
    uvs = np.concatenate([head.skin.uvs, eyes.uvs[ball], teeth.uvs])
    first = len(head.skin.tris)
    return tris.astype(np.int32), uvs, np.array([first, first + int(ball.sum())])


def build_scene(
    head: Head, hair: HairSet, skin: SkinMap, face: FaceAttributes, view: ViewAttributes, *, verts: np.ndarray,
    camera: Camera, rng: np.random.Generator, sky: np.ndarray,
) -> Scene:  # fmt: skip
    """Everything opaque of one portrait."""
    blocks = [
        _skin_block(head, skin, face, verts, camera=camera, rng=rng), _eye_block(head, verts, camera),
        _plain_block(head, "teeth/teeth_base", verts, camera, (0.85, 0.80, 0.74)),
    ]  # fmt: skip
    attr = np.concatenate(blocks)
    attr[:, 9] = sky
    tris, uvs, ranges = hair.solid(lambda: solid_parts(head, hair))
    colour = hair_colour(face)
    tone = skin_.base_tone(face)
    painted = colour * 0.55 + tone * 0.06 if face.hair in PAINTED else colour * 0.5
    paint = np.stack(
        [skin_.lip_colour(face, rng), painted, to_linear(np.array(view.garment)), colour * 0.5 + tone * 0.08]
    )
    return Scene(
        camera.project(attr[:, 0:3]), tris, uvs, attr, ranges, _details(hair, face, rng), paint.astype(np.float32)
    )


def depth_map(
    scene: Scene, light: np.ndarray, style: Style | None, hair_points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The key light's depth map [R,R] and the [3,4] matrix from view space to it (x, y in its pixels, z away from the
    light).
    """
    size, half = 320, 2.3
    to_map = light_matrix(light, size, half)
    depth = np.full((size, size), raster.FAR, np.float32)
    cast(depth, to_map, scene.attr[:, 0:3], opaque(scene.tris[: scene.ranges[1]]))
    if style is not None:
        cast(depth, to_map, hair_points, style.caster())
    return depth, to_map


def light_matrix(light: np.ndarray, size: int, half: float) -> np.ndarray:
    """Parallel projection along `light` of a square of +-half dm around the head's middle."""
    side = np.cross([0.0, 1.0, 0.0], light)
    side = side / np.linalg.norm(side) if np.linalg.norm(side) > 1e-6 else np.array([1.0, 0.0, 0.0])
    axes = np.stack([side, np.cross(side, light), -light])
    k = size / (2 * half)
    matrix = np.concatenate([axes * np.array([[k], [k], [1.0]]), np.array([[size / 2], [size / 2], [0.0]])], 1)
    matrix[:, 3] -= matrix[:, :3] @ np.array([0.0, -0.4, -0.7])
    return matrix


def cast(depth: np.ndarray, to_map: np.ndarray, points: np.ndarray, caster: Caster) -> None:
    """Draws a mesh (tris, uvs, alpha) of view-space points [V,3] into a depth map."""
    mapped = (points @ to_map[:, :3].T + to_map[:, 3]).astype(np.float32)
    raster.raster_depth(mapped, *caster, depth)


def opaque(tris: np.ndarray) -> Caster:
    """A caster without holes."""
    return tris, np.zeros((1, 3, 2), np.float32), np.ones((1, 1), np.float32)


def bake_sky(head: Head, hair: HairSet, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Share of the sky each vertex of the solid parts and of the hair sees on a neutral head, cosine-weighted (64
    directions).
    """
    face = FaceAttributes(sex=0.5, age=30)
    verts = head.blend(face, {})
    camera = look_from(head, verts, ViewAttributes(), 256)
    skin_points = pose_points(head.skin_points(verts), camera)
    tris, _, _ = hair.solid(lambda: solid_parts(head, hair))
    eyes = pose_points(head.proxy_points("eyes/high-poly", verts), camera)
    teeth = pose_points(head.proxy_points("teeth/teeth_base", verts), camera)
    points = np.concatenate([skin_points, eyes, teeth])
    style = hair.style(name)
    strands = pose_points(style.points(head, verts), camera) if style else np.zeros((0, 3), np.float32)
    normals = raster.vertex_normals(points, tris)
    seen, weight = np.zeros(len(points)), np.full(len(points), 1e-6)
    hair_seen = np.zeros(len(strands))
    count, size = 64, 192
    for i in range(count):
        y = 1 - 2 * (i + 0.5) / count
        angle = np.pi * (1 + 5**0.5) * i
        light = np.array([np.cos(angle) * np.sqrt(1 - y * y), y, np.sin(angle) * np.sqrt(1 - y * y)])
        to_map = light_matrix(light, size, 2.6)
        depth = np.full((size, size), raster.FAR, np.float32)
        cast(depth, to_map, points, opaque(tris))
        if style is not None:
            cast(depth, to_map, strands, style.caster())
        facing = np.clip(normals @ light, 0, None)
        lifted = ((points + 0.02 * normals) @ to_map[:, :3].T + to_map[:, 3]).astype(np.float32)
        seen += facing * raster.vertex_light(depth, lifted, 0.03, 1)
        weight += facing
        mapped = (strands @ to_map[:, :3].T + to_map[:, 3]).astype(np.float32)
        hair_seen += raster.vertex_light(depth, mapped, 0.06, 1)
    return (seen / weight).astype(np.float32), (hair_seen / count * 1.6).clip(0, 1).astype(np.float32)
