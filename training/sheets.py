"""Sample sheets: portraits in a grid, so that a run is judged by its pictures."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def grid(rows: list[Tensor]) -> Image.Image:
    """Rows of portraits float32 [n, 3, size, size], −1…1, as one RGB picture; rows stand under each other."""
    lines = [torch.cat(list(row.float().cpu()), dim=2) for row in rows]
    pixels = ((torch.cat(lines, dim=1).clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
