# ruff: noqa: PLR0917  (numba kernels take flat positional arrays)
"""A small software rasteriser: visibility, depth, alpha-blended layers, normals. Numba kernels, one thread, no GL.

Screen points are `[V,3]` float32: x and y in pixels (y down, pixel centres at .5), z = distance from the camera
(larger is farther). Attributes are interpolated with perspective-correct barycentrics (weights divided by z, as in
Heckbert 1989).
"""

from __future__ import annotations

import numba
import numpy as np

FAR = np.float32(1e9)
SOLID, THIN, BOTH = 1, 2, 3
_jit = numba.njit(cache=True, nogil=True, fastmath=False)


@_jit
def vertex_normals(verts: np.ndarray, tris: np.ndarray) -> np.ndarray:
    """Area-weighted unit vertex normals [V,3] of triangles wound counter-clockwise."""
    out = np.zeros(verts.shape, np.float32)
    for t in range(tris.shape[0]):
        a, b, c = tris[t, 0], tris[t, 1], tris[t, 2]
        ux, uy, uz = verts[b, 0] - verts[a, 0], verts[b, 1] - verts[a, 1], verts[b, 2] - verts[a, 2]
        vx, vy, vz = verts[c, 0] - verts[a, 0], verts[c, 1] - verts[a, 1], verts[c, 2] - verts[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in (a, b, c):
            out[k, 0] += nx
            out[k, 1] += ny
            out[k, 2] += nz
    for k in range(out.shape[0]):
        length = np.sqrt(out[k, 0] ** 2 + out[k, 1] ** 2 + out[k, 2] ** 2) + 1e-12
        out[k] /= length
    return out


@_jit
def strand_tangents(verts: np.ndarray, tris: np.ndarray, uvs: np.ndarray) -> np.ndarray:
    """Unit tangents [V,3] along growing v of the texture (hair strands run that way); uvs [T,3,2]."""
    out = np.zeros(verts.shape, np.float32)
    for t in range(tris.shape[0]):
        a, b, c = tris[t, 0], tris[t, 1], tris[t, 2]
        du1, dv1 = uvs[t, 1, 0] - uvs[t, 0, 0], uvs[t, 1, 1] - uvs[t, 0, 1]
        du2, dv2 = uvs[t, 2, 0] - uvs[t, 0, 0], uvs[t, 2, 1] - uvs[t, 0, 1]
        sign = 1.0 if du1 * dv2 - du2 * dv1 > 0 else -1.0
        for d in range(3):
            tangent = sign * ((verts[c, d] - verts[a, d]) * du1 - (verts[b, d] - verts[a, d]) * du2)
            out[a, d] += tangent
            out[b, d] += tangent
            out[c, d] += tangent
    for k in range(out.shape[0]):
        length = np.sqrt(out[k, 0] ** 2 + out[k, 1] ** 2 + out[k, 2] ** 2) + 1e-12
        out[k] /= length
    return out


@_jit
def _edge(ax: float, ay: float, bx: float, by: float, px: float, py: float) -> float:
    return (bx - ax) * (py - ay) - (by - ay) * (px - ax)


@_jit
def raster_visible(points: np.ndarray, tris: np.ndarray, zbuf: np.ndarray, ids: np.ndarray, bary: np.ndarray) -> None:
    """Writes the nearest front-facing triangle per pixel: zbuf [H,W], ids [H,W] int32, bary [H,W,2] (weights of
    corners 1, 2).
    """
    h, w = zbuf.shape
    for t in range(tris.shape[0]):
        a, b, c = tris[t, 0], tris[t, 1], tris[t, 2]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = _edge(ax, ay, bx, by, cx, cy)
        if area >= -1e-9:
            continue
        x0, x1 = max(int(np.floor(min(ax, bx, cx) - 0.5)), 0), min(int(np.ceil(max(ax, bx, cx))), w - 1)
        y0, y1 = max(int(np.floor(min(ay, by, cy) - 0.5)), 0), min(int(np.ceil(max(ay, by, cy))), h - 1)
        ia, ib, ic = 1.0 / points[a, 2], 1.0 / points[b, 2], 1.0 / points[c, 2]
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                w0 = _edge(bx, by, cx, cy, x + 0.5, y + 0.5) / area
                w1 = _edge(cx, cy, ax, ay, x + 0.5, y + 0.5) / area
                w2 = 1.0 - w0 - w1
                if w0 < 0 or w1 < 0 or w2 < 0:
                    continue
                inv = w0 * ia + w1 * ib + w2 * ic
                z = 1.0 / inv
                if z < zbuf[y, x]:
                    zbuf[y, x] = z
                    ids[y, x] = t
                    bary[y, x, 0] = w1 * ib * z
                    bary[y, x, 1] = w2 * ic * z


@_jit
def raster_depth(points: np.ndarray, tris: np.ndarray, uvs: np.ndarray, alpha: np.ndarray, zbuf: np.ndarray) -> None:
    """Nearest depth, both sides, parallel projection. A texel with alpha < 0.5 lets light through; alpha [h,w], uvs
    [T,3,2].
    """
    h, w = zbuf.shape
    th, tw = alpha.shape
    for t in range(tris.shape[0]):
        a, b, c = tris[t, 0], tris[t, 1], tris[t, 2]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = _edge(ax, ay, bx, by, cx, cy)
        if abs(area) < 1e-9:
            continue
        x0, x1 = max(int(np.floor(min(ax, bx, cx) - 0.5)), 0), min(int(np.ceil(max(ax, bx, cx))), w - 1)
        y0, y1 = max(int(np.floor(min(ay, by, cy) - 0.5)), 0), min(int(np.ceil(max(ay, by, cy))), h - 1)
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                w0 = _edge(bx, by, cx, cy, x + 0.5, y + 0.5) / area
                w1 = _edge(cx, cy, ax, ay, x + 0.5, y + 0.5) / area
                w2 = 1.0 - w0 - w1
                if w0 < 0 or w1 < 0 or w2 < 0:
                    continue
                z = w0 * points[a, 2] + w1 * points[b, 2] + w2 * points[c, 2]
                if z >= zbuf[y, x]:
                    continue
                if th > 1:
                    u = w0 * uvs[t, 0, 0] + w1 * uvs[t, 1, 0] + w2 * uvs[t, 2, 0]
                    v = w0 * uvs[t, 0, 1] + w1 * uvs[t, 1, 1] + w2 * uvs[t, 2, 1]
                    if alpha[int((1.0 - v) * th) % th, int(u * tw) % tw] < 0.5:
                        continue
                zbuf[y, x] = z


@_jit
def lit_fraction(zbuf: np.ndarray, x: float, y: float, z: float, radius: int) -> float:
    """Share of the depth map's pixels around (x, y) that do not hide depth z; outside the map everything is lit.

    The window slides by fractions of a pixel (its border pixels weigh less), so the penumbra has no steps.
    """
    h, w = zbuf.shape
    fx, fy = x - 0.5, y - 0.5
    ix, iy = int(np.floor(fx)), int(np.floor(fy))
    tx, ty = fx - ix, fy - iy
    total = 0.0
    for dy in range(-radius, radius + 2):
        wy = 1.0 - ty if dy == -radius else (ty if dy == radius + 1 else 1.0)
        for dx in range(-radius, radius + 2):
            wx = 1.0 - tx if dx == -radius else (tx if dx == radius + 1 else 1.0)
            px, py = ix + dx, iy + dy
            if px < 0 or py < 0 or px >= w or py >= h or zbuf[py, px] > z:
                total += wx * wy
    return total / ((2 * radius + 1) ** 2)


@_jit
def vertex_light(zbuf: np.ndarray, points: np.ndarray, bias: float, radius: int) -> np.ndarray:
    """`lit_fraction` of every point [V] (points in the depth map's pixels and depth)."""
    out = np.empty(points.shape[0], np.float32)
    for k in range(points.shape[0]):
        out[k] = lit_fraction(zbuf, points[k, 0], points[k, 1], points[k, 2] - bias, radius)
    return out


@_jit
def sample(texture: np.ndarray, u: float, v: float, out: np.ndarray) -> None:
    """Bilinear, wrapping sample of texture [H,W,C] at (u, v), v up; writes out [C]."""
    h, w, channels = texture.shape
    fx, fy = u * w - 0.5, (1.0 - v) * h - 0.5
    ix, iy = int(np.floor(fx)), int(np.floor(fy))
    tx, ty = fx - ix, fy - iy
    x0, x1, y0, y1 = ix % w, (ix + 1) % w, iy % h, (iy + 1) % h
    for k in range(channels):
        top = texture[y0, x0, k] * (1 - tx) + texture[y0, x1, k] * tx
        low = texture[y1, x0, k] * (1 - tx) + texture[y1, x1, k] * tx
        out[k] = top * (1 - ty) + low * ty


@_jit
def blend_layer(
    points: np.ndarray, tris: np.ndarray, order: np.ndarray, uvs: np.ndarray, texture: np.ndarray, light: np.ndarray,
    shine: np.ndarray, cut: np.ndarray, gain: float, zbuf: np.ndarray, image: np.ndarray, mode: int, bias: float,
) -> None:  # fmt: skip
    """Draws textured triangles in `order`, both sides, over image [H,W,3] (linear light).

    Colour = texture.rgb x light + texture.rgb x shine (both [V,3], per vertex); alpha = (texture.a - cut) x gain, cut
    [V]: 0 keeps the strands, 1 removes them, thin ones first. mode SOLID writes only the texels of alpha >= 0.85,
    with their depth; mode THIN blends only the others; mode BOTH does either as it comes. `bias` pulls the layer
    towards the camera.
    """
    h, w = zbuf.shape
    texel = np.empty(4, np.float32)
    for i in range(order.shape[0]):
        t = order[i]
        a, b, c = tris[t, 0], tris[t, 1], tris[t, 2]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = _edge(ax, ay, bx, by, cx, cy)
        if abs(area) < 1e-6:
            continue
        x0, x1 = max(int(np.floor(min(ax, bx, cx) - 0.5)), 0), min(int(np.ceil(max(ax, bx, cx))), w - 1)
        y0, y1 = max(int(np.floor(min(ay, by, cy) - 0.5)), 0), min(int(np.ceil(max(ay, by, cy))), h - 1)
        ia, ib, ic = 1.0 / points[a, 2], 1.0 / points[b, 2], 1.0 / points[c, 2]
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                w0 = _edge(bx, by, cx, cy, x + 0.5, y + 0.5) / area
                w1 = _edge(cx, cy, ax, ay, x + 0.5, y + 0.5) / area
                w2 = 1.0 - w0 - w1
                if w0 < 0 or w1 < 0 or w2 < 0:
                    continue
                z = 1.0 / (w0 * ia + w1 * ib + w2 * ic)
                if z - bias > zbuf[y, x]:
                    continue
                p0, p1, p2 = w0 * ia * z, w1 * ib * z, w2 * ic * z
                u = p0 * uvs[t, 0, 0] + p1 * uvs[t, 1, 0] + p2 * uvs[t, 2, 0]
                v = p0 * uvs[t, 0, 1] + p1 * uvs[t, 1, 1] + p2 * uvs[t, 2, 1]
                sample(texture, u, v, texel)
                alpha = min((texel[3] - p0 * cut[a] - p1 * cut[b] - p2 * cut[c]) * gain, 1.0)
                solid = alpha >= 0.85
                if alpha < 0.02 or (mode == SOLID and not solid) or (mode == THIN and solid):
                    continue
                alpha = 1.0 if solid else alpha
                for k in range(3):
                    lit = p0 * (light[a, k] + shine[a, k]) + p1 * (light[b, k] + shine[b, k])
                    lit += p2 * (light[c, k] + shine[c, k])
                    image[y, x, k] += alpha * (texel[k] * lit - image[y, x, k])
                if solid:
                    zbuf[y, x] = z
