"""Losses of collaborative pre-training (SCLDM eq. 1): symmetric contrastive, MAE, and a perceptual one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

logger = logging.getLogger(__name__)

FeatureLoss = Callable[[Tensor, Tensor], Tensor]
MAX_LOGIT_SCALE = 4.6052  # ln 100, CLIP's bound on the learned temperature
LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"


def contrastive(speech: Tensor, face: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of both cross-entropies over the similarity matrix of a batch (as CLIP), and the logits.

    `speech`, `face`: unit embeddings [batch, E], row i of both is one person; logits [batch, batch].
    `log_scale`: learned, log of 1/temperature.
    """
    logits = speech @ face.T * log_scale.clamp(max=MAX_LOGIT_SCALE).exp()
    target = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2, logits


def laplacian_pyramid(a: Tensor, b: Tensor, levels: int = 4) -> Tensor:
    """Mean absolute difference of the band-pass levels of two images, summed (Lap1, Bojanowski et al. 2018).

    It asks for edges and texture at every scale, which MAE alone lets go; unlike LPIPS it needs no trained network.
    """
    difference = a - b  # the pyramid is linear: one pyramid of the difference serves
    loss = difference.new_zeros(())
    for _ in range(levels):
        if min(difference.shape[-2:]) < 2:
            break
        low = avg_pool2d(difference, 2)
        loss = loss + (difference - interpolate(low, scale_factor=2.0, mode="nearest")).abs().mean()
        difference = low
    return loss + difference.abs().mean()


def colour_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the opponent colours r − g and b − (r + g)/2 of two images [n, 3, H, W].

    Hues differ by little in each channel and by much in these; plain MAE learns them last.
    """
    red, green, blue = (a - b).unbind(dim=1)
    return ((red - green).abs() + (blue - (red + green) / 2).abs()).mean() / 2


def feature_loss(name: str, device: torch.device) -> tuple[FeatureLoss, str]:
    """The perceptual loss and its true name, which checkpoints and logs carry.

    LPIPS needs the package `lpips` and AlexNet's weights in torch's hub folder; where they are not on disk the
    Laplacian pyramid takes its place, and a warning says so.
    """
    if name == "lpips":
        backbone = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
        try:
            import lpips  # type: ignore[import-not-found]
        except ImportError:
            logger.warning("package lpips is not installed: the Laplacian pyramid replaces LPIPS as feature loss")
        else:
            if backbone.is_file():
                return lpips.LPIPS(net="alex", verbose=False).to(device), "lpips-alex"
            logger.warning("no %s on disk: the Laplacian pyramid replaces LPIPS as feature loss", backbone)
    return laplacian_pyramid, "laplacian-pyramid"
