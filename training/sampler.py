"""The sampling loop in torch: previews and evaluation use it, and export's parity holds the graphs against it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from training.models.denoiser import Denoiser
from training.prior_shift import Shift
from training.sampling import StepTable

Network = Callable[[Tensor, float, int], Tensor]
"""(S·x [n, C, h, w], timestep, level) → the network's prediction, of the same shape."""


def sample(network: Network, x: Tensor, table: StepTable, clip: float) -> Tensor:
    """Normalised latents [n, C, h, w] from the source x of that shape: the two lines of `training.sampling`."""
    history = torch.zeros_like(x)
    for i in range(len(table)):
        net = network(float(table.S[i]) * x, float(table.timesteps[i]), int(table.levels[i]))
        x0 = (float(table.P[i]) * x + float(table.Q[i]) * net).clamp(-clip, clip)
        x, history = float(table.A[i]) * x + float(table.B[i]) * x0 + float(table.C[i]) * history, x0
    return x


def guided_network(denoiser: Denoiser, embedding: Tensor, shift: Shift, guidance: float) -> Network:
    """A DDPM network, which sees x' = s·x + d (SCLDM eq. 2) while x itself stays without the prior.

    Classifier-free guidance (Ho & Salimans 2022, eq. 6): unconditional + guidance · (conditional − unconditional).
    """
    scale, offset = shift
    tokens = denoiser.tokens(embedding)
    both = torch.cat([tokens, denoiser.null_tokens.expand_as(tokens)])

    def network(x: Tensor, timestep: float, level: int) -> Tensor:
        times, levels = _filled(both, timestep, level)
        conditional, unconditional = denoiser((scale * x + offset).repeat(2, 1, 1, 1), times, both, levels).chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return network


def folded_network(denoiser: Denoiser, embedding: Tensor) -> Network:
    """A shortcut network: guidance is folded into its steps and the prior lies in their source."""
    tokens = denoiser.tokens(embedding)

    def network(x: Tensor, timestep: float, level: int) -> Tensor:
        times, levels = _filled(tokens, timestep, level)
        return denoiser(x, times, tokens, levels)  # type: ignore[no-any-return]

    return network


def _filled(tokens: Tensor, timestep: float, level: int) -> tuple[Tensor, Tensor]:
    n, device = len(tokens), tokens.device
    return torch.full((n,), timestep, device=device), torch.full((n,), level, device=device, dtype=torch.int64)
