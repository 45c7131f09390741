# ruff: noqa: PLR0917  (numba kernels take flat positional arrays)
"""Per-pixel shading of the visible surfaces: what they are made of (`surface`), then light on them (`shade`).

Attribute columns per vertex: 0-2 position (view space, camera on +z), 3-5 normal, 6-8 albedo (linear), 9 open sky
0..1, 10 lips, 11 beard, 12 scalp, 13 gloss, 14-16 rest position (eyes: view-space direction from the eye's centre),
17 garment, 18 top of the scalp, 19 inside of the mouth or the sockets. Skin follows Penner's wrap-lit red terminator
(2010) and a GGX lobe (Walter et al. 2007).
"""

from __future__ import annotations

import numba
import numpy as np

from training.corpus.raster import lit_fraction, sample

COLUMNS = 20
SKIN, EYE, TEETH, CLOTH = 0, 1, 2, 3
_jit = numba.njit(cache=True, nogil=True)


@_jit
def _step(low: float, high: float, x: float) -> float:
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3 - 2 * t)


@_jit
def _mix(colour: np.ndarray, other: np.ndarray, amount: float) -> None:
    for k in range(3):
        colour[k] += (other[k] - colour[k]) * amount


@_jit
def _skin_detail(
    a: np.ndarray, colour: np.ndarray, noise: np.ndarray, creases: np.ndarray, box: np.ndarray, detail: np.ndarray,
    paint: np.ndarray, n4: np.ndarray, w4: np.ndarray,
) -> tuple[float, float, int]:  # fmt: skip
    """Lips, stubble, scalp, freckles, creases, cloth on one skin pixel: changes colour; returns (height dm, gloss,
    material).

    detail: 0 stubble, 1 painted scalp, 2 freckles, 3-6 crease strengths, 7-8 noise offset, 9 pores, 10 blotches, 11
    bald top. paint [4,3]: lips, hair on the skin, garment, beard.
    """
    u = np.arctan2(a[14], a[16] - 0.45) * 0.95
    sample(noise, u / 1.6 + detail[7], a[15] / 1.6 + detail[8], n4)
    if a[17] > 0.0:
        weave = 1.0 + 0.05 * n4[1] + 0.06 * n4[0]
        for k in range(3):
            colour[k] = paint[2, k] * weave
        rib = _step(0.0, 0.02, a[17]) * 0.035 + 0.004 * np.sin(a[17] * 160.0) * _step(0.16, 0.13, a[17])
        return rib, 0.0, CLOTH
    hidden = a[19]
    sample(creases, (a[14] - box[0]) / (box[1] - box[0]), (a[15] - box[2]) / (box[3] - box[2]), w4)
    crease = 0.0
    if a[16] > 0.5 and box[0] < a[14] < box[1] and box[2] < a[15] < box[3]:
        for k in range(4):
            crease += w4[k] * detail[3 + k]
    crease *= _step(0.5, 0.8, a[16])
    flush = 1.0 + detail[10] * n4[0]
    colour[0] *= 1.0 + 0.35 * (flush - 1.0)
    colour[1] *= flush
    colour[2] *= flush
    spot = detail[2] * _step(1.0, 2.2, n4[2] + 0.4 * n4[0]) * _step(6.2, 6.6, a[15])
    dark = (1.0 - 0.28 * crease) * (1.0 + 0.03 * n4[1]) * (1.0 - 0.45 * spot)
    colour[0] *= 1.0 - (1.0 - dark) * 0.7
    colour[1] *= dark
    colour[2] *= 1.0 - (1.0 - dark) * 1.15
    lip = _step(-0.010, 0.016, a[10] + 0.003 * n4[1]) * (1.0 - hidden)
    _mix(colour, paint[0], lip * (0.92 + 0.06 * n4[3]))
    beard = a[11] * detail[0] * (1.0 - lip)
    if beard > 0.01:
        _mix(colour, paint[3], min(max(beard * (0.55 + 0.30 * n4[3] + 0.12 * n4[1]), 0.0), 0.92))
    bare = detail[11] * a[18]
    scalp = _step(-0.05, 0.10, a[12] + 0.035 * n4[0] + 0.02 * n4[3]) * detail[1] * (1.0 - bare)
    if scalp > 0.01:
        _mix(colour, paint[1], min(max(scalp * (0.80 + 0.22 * n4[3] + 0.10 * n4[1]), 0.0), 0.96))
    height = detail[9] * n4[1] * (1.0 - 0.6 * lip) - 0.016 * crease + 0.004 * lip * n4[3] * 0.3
    height += 0.004 * n4[3] * max(beard, scalp)
    gloss = a[13] * (1.0 - 0.6 * max(beard, scalp)) + 0.55 * lip
    return height, gloss, SKIN


@_jit
def surface(
    ids: np.ndarray, bary: np.ndarray, tris: np.ndarray, uvs: np.ndarray, attr: np.ndarray, ranges: np.ndarray,
    eye: np.ndarray, teeth: np.ndarray, noise: np.ndarray, creases: np.ndarray, box: np.ndarray, detail: np.ndarray,
    paint: np.ndarray, gbuf: np.ndarray,
) -> None:  # fmt: skip
    """Fills gbuf [H,W,16]: 0-2 position, 3-5 normal, 6-8 albedo, 9 open sky, 10 gloss, 11 height, 12 material, 13-15
    rest or eye direction.

    ranges: first triangle of the eyes, of the teeth. eye, teeth: RGBA textures in linear light.
    """
    h, w = ids.shape
    a = np.empty(attr.shape[1], np.float32)
    colour, n4, w4 = np.empty(3, np.float32), np.empty(4, np.float32), np.empty(4, np.float32)
    for y in range(h):
        for x in range(w):
            t = ids[y, x]
            if t < 0:
                continue
            p1, p2 = bary[y, x, 0], bary[y, x, 1]
            p0 = 1.0 - p1 - p2
            i, j, k = tris[t, 0], tris[t, 1], tris[t, 2]
            for c in range(a.shape[0]):
                a[c] = p0 * attr[i, c] + p1 * attr[j, c] + p2 * attr[k, c]
            g = gbuf[y, x]
            for c in range(3):
                colour[c] = a[6 + c]
            if t < ranges[0]:
                height, gloss, material = _skin_detail(a, colour, noise, creases, box, detail, paint, n4, w4)
            else:
                u = p0 * uvs[t, 0, 0] + p1 * uvs[t, 1, 0] + p2 * uvs[t, 2, 0]
                v = p0 * uvs[t, 0, 1] + p1 * uvs[t, 1, 1] + p2 * uvs[t, 2, 1]
                is_eye = t < ranges[1]
                sample(eye if is_eye else teeth, u, v, n4)
                height, gloss, material = 0.0, 1.0, (EYE if is_eye else TEETH)
                for c in range(3):
                    colour[c] = n4[c] * a[6 + c]
            length = np.sqrt(a[3] ** 2 + a[4] ** 2 + a[5] ** 2) + 1e-9
            for c in range(3):
                g[c] = a[c]
                g[3 + c] = a[3 + c] / length
                g[6 + c] = colour[c]
                g[13 + c] = a[14 + c]
            g[9] = a[9]
            g[10] = gloss
            g[11] = height
            g[12] = material


@_jit
def ggx(nl: float, nv: float, nh: float, vh: float, rough: float, f0: float) -> float:
    """Specular reflectance times n.l: GGX distribution, Smith masking (Schlick's form), Schlick's Fresnel."""
    if nl <= 0.0:
        return 0.0
    a2 = rough**4
    d = a2 / (np.pi * (nh * nh * (a2 - 1) + 1) ** 2)
    k = (rough + 1) ** 2 / 8
    g = 1.0 / ((nl * (1 - k) + k) * (max(nv, 0.05) * (1 - k) + k))
    return d * g * (f0 + (1 - f0) * (1 - vh) ** 5) / 4 * nl


@_jit
def _spec(n: np.ndarray, l: np.ndarray, v: np.ndarray, rough: float, f0: float) -> float:  # noqa: E741
    hx, hy, hz = l[0] + v[0], l[1] + v[1], l[2] + v[2]
    length = np.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9
    nl = n[0] * l[0] + n[1] * l[1] + n[2] * l[2]
    nv = n[0] * v[0] + n[1] * v[1] + n[2] * v[2]
    nh = (n[0] * hx + n[1] * hy + n[2] * hz) / length
    vh = (v[0] * hx + v[1] * hy + v[2] * hz) / length
    return ggx(nl, nv, max(nh, 0.0), max(vh, 0.0), rough, f0)


@_jit
def _bump(gbuf: np.ndarray, x: int, y: int, scale: float, n: np.ndarray) -> None:
    """Tilts the normal by the height's slope on the screen (Mikkelsen 2010, for a nearly parallel camera); scale:
    pixels per dm.
    """
    h, w = gbuf.shape[:2]
    x0, x1, y0, y1 = max(x - 1, 0), min(x + 1, w - 1), max(y - 1, 0), min(y + 1, h - 1)
    material = gbuf[y, x, 12]
    if gbuf[y, x0, 12] != material or gbuf[y, x1, 12] != material:
        return
    if gbuf[y0, x, 12] != material or gbuf[y1, x, 12] != material:
        return
    gx = (gbuf[y, x1, 11] - gbuf[y, x0, 11]) * scale / 2
    gy = -(gbuf[y1, x, 11] - gbuf[y0, x, 11]) * scale / 2
    gx, gy = min(max(gx, -0.8), 0.8), min(max(gy, -0.8), 0.8)
    dot = gx * n[0] + gy * n[1]
    n[0] -= gx - dot * n[0]
    n[1] -= gy - dot * n[1]
    n[2] += dot * n[2]
    length = np.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2)
    for k in range(3):
        n[k] /= length


@_jit
def shade(
    gbuf: np.ndarray, ids: np.ndarray, lights: np.ndarray, colours: np.ndarray, to_map: np.ndarray, depth: np.ndarray,
    camera: float, scale: float, gaze: np.ndarray, image: np.ndarray,
) -> None:  # fmt: skip
    """Lights gbuf onto image [H,W,3] (linear).

    lights [3,3]: unit directions to key, fill, rim; colours [5,3]: key, fill, rim, sky, ground; to_map [3,4] takes
    view space to the key's depth map; camera: its z; scale: pixels per dm; gaze: unit view-space axis of the eyes.
    """
    h, w = ids.shape
    n, v, c3 = np.empty(3, np.float64), np.empty(3, np.float64), np.empty(3, np.float64)
    wrap = np.array([0.34, 0.14, 0.09])
    for y in range(h):
        for x in range(w):
            if ids[y, x] < 0:
                continue
            g = gbuf[y, x]
            material = int(g[12])
            for k in range(3):
                n[k] = g[3 + k]
                v[k] = -g[k]
            v[2] += camera
            v /= np.sqrt(v[0] ** 2 + v[1] ** 2 + v[2] ** 2)
            if material in (SKIN, CLOTH):
                _bump(gbuf, x, y, scale, n)
            px, py, pz = g[0] + 0.03 * g[3], g[1] + 0.03 * g[4], g[2] + 0.03 * g[5]
            mx = to_map[0, 0] * px + to_map[0, 1] * py + to_map[0, 2] * pz + to_map[0, 3]
            my = to_map[1, 0] * px + to_map[1, 1] * py + to_map[1, 2] * pz + to_map[1, 3]
            mz = to_map[2, 0] * px + to_map[2, 1] * py + to_map[2, 2] * pz + to_map[2, 3]
            shadow = lit_fraction(depth, mx, my, mz - 0.03, 3)
            sky = g[9]
            if material == EYE:
                _shade_eye(g, n, v, lights, colours, shadow, sky, gaze, image[y, x])
                continue
            up = 0.5 + 0.5 * n[1]
            nv = max(n[0] * v[0] + n[1] * v[1] + n[2] * v[2], 0.0)
            for k in range(3):
                soft = wrap[k] if material == SKIN else 0.05
                bleed = shadow ** (1.0 - soft) if material == SKIN else shadow
                key = max(n[0] * lights[0, 0] + n[1] * lights[0, 1] + n[2] * lights[0, 2] + soft, 0.0) / (1 + soft)
                fill = max(n[0] * lights[1, 0] + n[1] * lights[1, 1] + n[2] * lights[1, 2] + 0.3, 0.0) / 1.3
                rim = max(n[0] * lights[2, 0] + n[1] * lights[2, 1] + n[2] * lights[2, 2], 0.0)
                open_ = sky ** (1.0 - soft)
                ambient = colours[4, k] + (colours[3, k] - colours[4, k]) * up
                c3[k] = key * bleed * colours[0, k] * (0.55 + 0.45 * open_)
                c3[k] += (fill * colours[1, k] + ambient) * open_ + rim * colours[2, k] * open_ * open_
            gloss = g[10]
            wide = _spec(n, lights[0], v, 0.52, 0.035) * shadow
            tight = _spec(n, lights[0], v, 0.33, 0.03) * shadow
            other = _spec(n, lights[1], v, 0.48, 0.035) * sky
            edge = (1 - nv) ** 4 * 0.10 * sky * up
            for k in range(3):
                spec = (wide + tight * 0.45) * colours[0, k] + other * colours[1, k] + edge * colours[3, k]
                image[y, x, k] = g[6 + k] * c3[k] + gloss * spec * 2.2


@_jit
def _shade_eye(
    g: np.ndarray, n: np.ndarray, v: np.ndarray, lights: np.ndarray, colours: np.ndarray, shadow: float, sky: float,
    gaze: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """A wet ball: soft light on the white, a bright iris, sharp reflections on the cornea, the upper lid's shade."""
    length = np.sqrt(g[13] ** 2 + g[14] ** 2 + g[15] ** 2) + 1e-9
    d = np.array([g[13] / length, g[14] / length, g[15] / length])
    along = d[0] * gaze[0] + d[1] * gaze[1] + d[2] * gaze[2]
    iris = _step(0.80, 0.88, along)
    bulge = 0.15 + 0.75 * iris
    cornea = d + bulge * (d - gaze * along)
    cornea /= np.sqrt(cornea[0] ** 2 + cornea[1] ** 2 + cornea[2] ** 2)
    lid = 1.0 - 0.45 * _step(0.05, 0.42, d[1] - gaze[1])
    corner = 1.0 - 0.35 * _step(0.45, 0.85, abs(d[0] - gaze[0]))
    key = max(d[0] * lights[0, 0] + d[1] * lights[0, 1] + d[2] * lights[0, 2] + 0.35, 0.0) / 1.35
    fill = max(d[0] * lights[1, 0] + d[1] * lights[1, 1] + d[2] * lights[1, 2] + 0.4, 0.0) / 1.4
    spot = _spec(cornea, lights[0], v, 0.17, 0.04) * (0.25 + 0.75 * shadow)
    soft = _spec(cornea, lights[1], v, 0.24, 0.04)
    up = 0.5 + 0.5 * cornea[1]
    shade_ = lid * corner * (0.45 + 0.55 * sky)
    for k in range(3):
        light = (
            key * (0.35 + 0.65 * shadow) * colours[0, k] + fill * colours[1, k] + 0.5 * (colours[3, k] + colours[4, k])
        )
        out[k] = g[6 + k] * light * shade_ * (1.0 + 0.35 * iris)
        out[k] += (
            min(spot, 2.5) * colours[0, k] * 0.55
            + min(soft, 2.5) * colours[1, k] * 0.35
            + 0.03 * up * colours[3, k] * lid
        )
