"""The sampling loop in torch: previews use it, and export's parity holds the graphs against it."""

from __future__ import annotations

import torch
from torch import Tensor

from training.models.denoiser import Denoiser
from training.prior_shift import Shift
from training.sampling import StepTable


def sample(
    denoiser: Denoiser,
    embedding: Tensor,
    noise: Tensor,
    table: StepTable,
    shift: Shift,
    *,
    guidance: float,
    clip: float,
) -> Tensor:
    """Normalised latents [n, C, h, w] from noise of that shape: the two lines of `training.sampling`, row by row.

    The network sees x' = s·x + d; x itself stays without the prior. Classifier-free guidance
    (Ho & Salimans 2022, eq. 6): net = unconditional + guidance · (conditional − unconditional).
    """
    scale, offset = shift
    tokens = denoiser.tokens(embedding)
    both = torch.cat([tokens, denoiser.null_tokens.expand_as(tokens)])
    x, history = noise, torch.zeros_like(noise)
    for i in range(len(table)):
        t = torch.full((2 * len(x),), float(table.timesteps[i]), device=x.device)
        conditional, unconditional = denoiser((scale * x + offset).repeat(2, 1, 1, 1), t, both).chunk(2)
        net = unconditional + guidance * (conditional - unconditional)
        x0 = (float(table.P[i]) * x + float(table.Q[i]) * net).clamp(-clip, clip)
        x, history = float(table.A[i]) * x + float(table.B[i]) * x0 + float(table.C[i]) * history, x0
    return x
