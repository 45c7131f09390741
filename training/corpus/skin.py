"""Synthesised skin: where lips, blush, beard and scalp lie, what colour they have, and how the skin is creased.

Everything is placed in REST space, the position of a skin vertex on the undeformed base mesh (decimetres: eyes at y
7.28, mouth 6.61, chin 6.16, top 8.49, nose tip z 1.68), so it follows every blended face. Colours are linear light.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from training.corpus.attributes import FaceAttributes
from training.corpus.head import Head

# sRGB 0..255 of mid-toned skin. Mixed as log reflectance, the way absorbing pigments mix.
TONES = {"african": (126, 82, 58), "asian": (209, 161, 127), "caucasian": (219, 170, 146)}
WRINKLE_BOX = (-0.8, 0.8, 5.9, 8.3)  # x0, x1, y0, y1 in rest space of the crease maps
WRINKLE_DENSITY = 200  # texels per decimetre


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB 0..1 to linear light 0..1 (IEC 61966-2-1)."""
    srgb = np.asarray(srgb, np.float64)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def smoothstep(low: float, high: float, x: np.ndarray | float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between; `low` > `high` falls."""
    t = np.clip((np.asarray(x, np.float64) - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def blob(points: np.ndarray, centre: tuple[float, float, float], radius: tuple[float, float, float]) -> np.ndarray:
    """Gaussian bump [V] around a centre, on both sides of the face."""
    mirrored = np.stack([abs(points[:, 0]), points[:, 1], points[:, 2]], 1)
    return np.exp(-(((mirrored - np.array(centre)) / np.array(radius)) ** 2).sum(1))


def nearest(points: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """Distance [V] to the nearest of the rim points."""
    out = np.full(len(points), np.inf)
    for p in rim:
        np.minimum(out, ((points - p) ** 2).sum(1), out=out)
    return np.sqrt(out)


@dataclass(frozen=True)
class SkinMap:
    """Per smoothed skin vertex [V], fixed for a head model. Signed distances are in decimetres, positive inside."""

    rest: np.ndarray  # [V,3]
    lips: np.ndarray  # signed distance to the border of the red of the lips
    beard: np.ndarray  # 0..1
    beard_border: np.ndarray  # signed distance-like depth inside the border of a grown beard
    scalp: np.ndarray  # signed distance-like height above the hairline
    top: np.ndarray  # 0..1 crown and front of the scalp, where men lose hair
    hidden: np.ndarray  # 0..1 inside of the mouth and of the eye sockets
    lids: np.ndarray  # 0..1 next to the lid rims
    zones: dict[str, np.ndarray]  # blush, nose, ear, under_eye, upper_lid, chin, forehead, brow: 0..1


def _lip_distance(head: Head, points: np.ndarray) -> np.ndarray:
    """How far inside the red of the lips a vertex lies: reach of the lip minus its distance to the inner lip line."""
    rim = points[head.rims["cavity"]]
    distance = nearest(points, rim)
    across = np.clip(abs(points[:, 0]) / 0.25, 0, 1.2)
    bow = 1 - 0.16 * np.exp(-((points[:, 0] / 0.035) ** 2))
    upper = 0.125 * bow * np.clip(1 - across**2.2, 0.0, 1) + 0.008
    lower = 0.135 * np.clip(1 - across**3, 0.0, 1) + 0.008
    line = np.interp(points[:, 0], *_sorted_line(rim))
    reach = np.where(points[:, 1] > line, upper, lower)
    return np.where(points[:, 2] > 1.1, reach - distance, -1.0)


def _sorted_line(rim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lip line's height over x: middle of the upper and lower rim."""
    xs = np.linspace(rim[:, 0].min(), rim[:, 0].max(), 15)
    ys = [rim[np.argsort(abs(rim[:, 0] - x))[:4], 1].mean() for x in xs]
    return xs, np.array(ys)


def _hairline(points: np.ndarray) -> np.ndarray:
    """Height above the hairline; its height over z: forehead, temple, sideburn, over the ear, nape."""
    z = [-1.2, -0.5, 0.2, 0.42, 0.6, 0.72, 0.80, 0.92, 1.05, 1.2, 1.35]
    y = [6.45, 6.5, 6.75, 7.1, 7.3, 7.05, 7.1, 7.62, 7.85, 8.02, 8.1]
    ears = (
        smoothstep(0.68, 0.73, abs(points[:, 0]))
        * smoothstep(7.56, 7.46, points[:, 1])
        * smoothstep(0.10, 0.2, points[:, 2])
    )
    return points[:, 1] - np.interp(points[:, 2], z, y) - 1.2 * ears


def _beard(points: np.ndarray, lips: np.ndarray) -> np.ndarray:
    x, y, z = abs(points[:, 0]), points[:, 1], points[:, 2]
    cheek_line = np.interp(z, [0.4, 0.62, 0.75, 0.95, 1.2, 1.4, 1.6], [6.5, 6.95, 7.15, 6.82, 6.66, 6.60, 6.56])
    jaw = smoothstep(-0.06, 0.07, cheek_line - y) * smoothstep(0.52, 0.70, z) * smoothstep(5.85, 6.2, y)
    wing = 0.15 + 1.3 * np.clip(6.86 - y, 0, 0.16)
    moustache = (
        smoothstep(wing + 0.06, wing - 0.04, x)
        * smoothstep(6.86, 6.80, y)
        * smoothstep(6.52, 6.6, y)
        * smoothstep(1.2, 1.3, z)
    )
    corner = smoothstep(0.26, 0.32, x) * smoothstep(0.0, 0.2, z - 1.1) * smoothstep(6.8, 6.6, y)
    return np.maximum(jaw, np.maximum(moustache, jaw * corner)) * smoothstep(0.02, -0.02, lips)


def build_skin_map(head: Head) -> SkinMap:
    """Lays the skin out on the undeformed base mesh."""
    points = head.skin_points(head.rest).astype(np.float64)
    flags = np.zeros(len(head.skin_ids))
    for inside in head.inside.values():
        flags[inside] = 1.0
    for rim in head.rims.values():
        flags[rim] = 0.35
    hidden = head.skin_matrix @ flags
    lips = _lip_distance(head, points)
    lid_rims = np.concatenate([points[head.rims["l_socket"]], points[head.rims["r_socket"]]])
    z = points[:, 2]
    front = smoothstep(0.7, 1.0, z)
    zones = {
        "blush": blob(points, (0.46, 6.93, 1.3), (0.24, 0.2, 0.5)),
        "nose": blob(points, (0.0, 6.93, 1.62), (0.16, 0.14, 0.25)),
        "ear": smoothstep(0.66, 0.78, abs(points[:, 0]))
        * smoothstep(6.6, 6.8, points[:, 1])
        * smoothstep(7.7, 7.5, points[:, 1]),
        "under_eye": blob(points, (0.29, 7.17, 1.36), (0.17, 0.07, 0.3)),
        "upper_lid": blob(points, (0.31, 7.37, 1.36), (0.16, 0.06, 0.3)),
        "chin": blob(points, (0.0, 6.35, 1.5), (0.2, 0.14, 0.3)),
        "forehead": blob(points, (0.0, 7.8, 1.4), (0.45, 0.3, 0.5)),
        "brow": blob(points, (0.3, 7.52, 1.42), (0.2, 0.05, 0.3)),
        "neck": smoothstep(6.25, 5.9, points[:, 1]) * smoothstep(1.5, 1.2, z),
        "t": np.maximum(
            blob(points, (0.0, 7.8, 1.45), (0.3, 0.3, 0.3)), blob(points, (0.0, 7.05, 1.6), (0.12, 0.3, 0.3))
        )
        * front,
    }
    lids = np.exp(-((nearest(points, lid_rims) / 0.022) ** 2))
    top = smoothstep(7.9, 8.15, points[:, 1]) * smoothstep(-0.5, -0.1, z)
    beard = _beard(points, lips)
    grown = np.minimum((beard - 0.6) * 0.3, (points[:, 1] - 6.16 + 0.12 * abs(points[:, 0])) * 0.8)
    return SkinMap(points, lips, beard, grown, _hairline(points), top, hidden, lids, zones)


def base_tone(face: FaceAttributes) -> np.ndarray:
    """Linear RGB reflectance of the face's skin."""
    shares = np.array([face.african, face.asian, face.caucasian], float)
    logs = np.log(to_linear(np.array([TONES[r] for r in ("african", "asian", "caucasian")]) / 255.0))
    mixed = (shares / max(shares.sum(), 1e-9)) @ logs
    darker = np.array([0.26, 0.34, 0.42]) * np.clip(face.skin_tone, -1, 1)
    return np.exp(mixed * (1 + 0.12 * np.clip(face.skin_tone, 0, 1)) - darker)


def vertex_albedo(skin: SkinMap, face: FaceAttributes, rng: np.random.Generator) -> np.ndarray:
    """Linear RGB [V,3]: tone with the redness, shade and pallor of the face's regions; lips and hair come later, per
    pixel.
    """
    tone = base_tone(face)
    light = float(np.clip(tone.mean() / 0.45, 0.15, 1.1))  # redness shows on light skin
    old = float(smoothstep(35, 75, face.age))
    zones = skin.zones
    colour = np.repeat(tone[None], len(skin.rest), 0)

    def tint(mask: np.ndarray, rgb: tuple[float, float, float], amount: float) -> None:
        nonlocal colour
        colour = colour * (1 + (mask * amount)[:, None] * (np.array(rgb) - 1))

    tint(zones["blush"], (1.06, 0.72, 0.74), light * (0.2 + 0.4 * rng.random() + 0.2 * (1 - face.sex)))
    tint(zones["nose"], (1.03, 0.76, 0.76), light * (0.3 + 0.4 * rng.random() + 0.3 * old))
    tint(zones["ear"], (1.04, 0.72, 0.70), light * 0.7)
    tint(zones["chin"], (1.02, 0.86, 0.86), light * 0.5)
    tint(zones["under_eye"], (0.82, 0.70, 0.76), 0.35 + 0.35 * rng.random() + 0.35 * old)
    tint(zones["upper_lid"], (0.88, 0.74, 0.74), 0.45 + 0.3 * (1 - face.sex) * rng.random())
    tint(zones["forehead"], (1.04, 1.05, 1.04), 0.7)
    tint(zones["neck"], (0.95, 0.90, 0.88), 0.7)
    tint(skin.lids, (0.62, 0.40, 0.40), 0.75)
    flesh = np.array([0.28, 0.075, 0.07])
    return colour * (1 - skin.hidden[:, None]) + flesh * skin.hidden[:, None]


def lip_colour(face: FaceAttributes, rng: np.random.Generator) -> np.ndarray:
    """Linear RGB of the lips: the skin with more blood; women may wear a little colour."""
    tone = base_tone(face)
    pale = float(smoothstep(0.08, 0.35, tone.mean()))
    red = np.array([0.92, 0.50, 0.52]) * pale + np.array([0.92, 0.74, 0.86]) * (1 - pale)
    natural = tone * red
    made_up = np.array([0.42, 0.07, 0.08]) + rng.random(3) * np.array([0.15, 0.06, 0.08])
    amount = (1 - face.sex) * 0.75 * max(0.0, rng.random() - 0.3)
    return natural * (1 - amount) + made_up * amount * (0.5 + tone.mean())


def noise_tiles(size: int = 512) -> np.ndarray:
    """Tileable noise [size,size,4], each of mean 0 and deviation 1: blotches, pores, freckle field, hair grain."""
    rng = np.random.Generator(np.random.Philox(20240))
    fy, fx = np.fft.fftfreq(size)[:, None] * size, np.fft.fftfreq(size)[None] * size
    radius = np.hypot(fx, fy)
    bands = (
        np.where(radius > 0, 1 / (1 + (radius / 6) ** 2), 0),
        np.exp(-(((radius - 115) / 45) ** 2)),
        np.exp(-(((radius - 26) / 12) ** 2)),
        np.exp(-(((radius - 95) / 40) ** 2)) * np.exp(-((fy / 75) ** 2)),
    )
    out = []
    for band in bands:
        field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) * band).real
        out.append((field - field.mean()) / field.std())
    return np.stack(out, -1).astype(np.float32)


def _strokes() -> list[tuple[int, float, float, list[tuple[float, float]]]]:
    """Creases as (channel, width, depth, polyline) on the character's left half, rest-space x and y; mirrored later.

    Channels: 0 forehead and frown, 1 around the eyes, 2 folds beside nose and mouth, 3 fine lines above the lip.
    """
    lines: list[tuple[int, float, float, list[tuple[float, float]]]] = []
    for y, reach, depth in ((7.70, 0.34, 0.8), (7.79, 0.40, 1.0), (7.88, 0.38, 0.9), (7.97, 0.30, 0.6)):
        xs = np.linspace(0.0, reach, 9)
        lines.append((0, 0.016, depth, [(x, y + 0.03 * np.sin(9 * x + 7 * y) - 0.10 * x * x) for x in xs]))
    lines.append((0, 0.015, 1.0, [(0.055, 7.42), (0.065, 7.5), (0.055, 7.58)]))
    for angle, length in ((28, 0.13), (10, 0.16), (-8, 0.16), (-27, 0.15)):
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        lines.append((1, 0.011, 0.9, [(0.475 + 0.02 * c, 7.28 + 0.03 * s), (0.475 + length * c, 7.28 + length * s)]))
    lines.append((1, 0.016, 0.9, [(0.17, 7.20), (0.24, 7.14), (0.33, 7.125), (0.41, 7.16)]))
    lines.append((1, 0.02, 0.7, [(0.16, 7.16), (0.22, 7.08), (0.31, 7.05), (0.40, 7.09)]))
    lines.append((2, 0.024, 1.0, [(0.15, 6.98), (0.21, 6.89), (0.28, 6.78), (0.325, 6.66), (0.335, 6.58)]))
    lines.append((2, 0.018, 0.7, [(0.265, 6.58), (0.285, 6.5), (0.29, 6.4)]))
    lines.append((2, 0.022, 0.5, [(0.0, 6.40), (0.08, 6.405), (0.14, 6.38)]))
    for x in (0.03, 0.07, 0.11, 0.15, 0.19):
        lines.append((3, 0.008, 0.35, [(x, 6.70), (x * 1.1, 6.80)]))
    return lines


def crease_map() -> np.ndarray:
    """Depth of the creases [H,W,4] over WRINKLE_BOX, 0 smooth .. 1 deepest, row 0 at the largest y."""
    x0, x1, y0, y1 = WRINKLE_BOX
    ys, xs = np.meshgrid(np.arange(y1, y0, -1 / WRINKLE_DENSITY), np.arange(x0, x1, 1 / WRINKLE_DENSITY), indexing="ij")
    out = np.zeros((*xs.shape, 4))
    side = abs(xs)
    for channel, width, depth, line in _strokes():
        best = np.full(xs.shape, np.inf)
        fade = np.zeros(xs.shape)
        for i, ((ax, ay), (bx, by)) in enumerate(itertools.pairwise(line)):
            dx, dy = bx - ax, by - ay
            t = np.clip(((side - ax) * dx + (ys - ay) * dy) / (dx * dx + dy * dy), 0, 1)
            distance = np.hypot(side - ax - t * dx, ys - ay - t * dy)
            along = (i + t) / (len(line) - 1)
            fade = np.where(distance < best, along, fade)
            best = np.minimum(best, distance)
        start = 1.0 if line[0][0] == 0.0 else smoothstep(0.0, 0.25, fade)
        profile = np.exp(-((best / width) ** 2)) * depth * start * smoothstep(1.0, 0.7, fade)
        out[..., channel] = np.maximum(out[..., channel], profile)
    return out.astype(np.float32)
