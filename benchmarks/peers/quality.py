"""How near an arm's portraits are to the reference's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.parts import JSON
from runtime.portrait import psnr

Images = npt.NDArray[np.uint8]


def cosine(wanted: Images, found: Images) -> float:
    """The least cosine of two portraits as vectors of −1…1, over the images."""
    flat = [(images.reshape(len(images), -1).astype(np.float64) / 127.5) - 1 for images in (wanted, found)]
    products = (flat[0] * flat[1]).sum(axis=1)
    return float(
        np.min(products / np.maximum(np.linalg.norm(flat[0], axis=1) * np.linalg.norm(flat[1], axis=1), 1e-12))
    )


def compare(wanted: Images, found: Images) -> JSON:
    """What the table says of an arm; `wanted`, `found`: uint8 [seeds, H, W, 3]."""
    return {
        "seeds": len(wanted),
        "psnr_db": round(psnr(found, wanted), 2),
        "cosine": round(cosine(wanted, found), 6),
        "max_levels": int(np.abs(wanted.astype(np.int16) - found).max()),
        "identical": bool(np.array_equal(wanted, found)),
    }
