"""Noise schedules and the step tables that every sampler here reduces to.

A sampler is a table. One row per step holds the timestep and the constants of

    x0     = clip(P·x + Q·net(x', t), ±latent_clip)
    x_next = A·x + B·x0 + C·x0_previous

so the same two lines run in the training previews, in the exported step graph and in its parity reference.
DDPM notation throughout: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps (SCLDM eq. 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ConfigInvalid
from runtime.specs import SOLVERS

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

SCHEDULES = ("linear", "scaled_linear", "cosine")
PREDICTIONS = ("epsilon", "v")


@dataclass(frozen=True)
class StepTable:
    """Coefficients of one sampler run: every array is float32 [n], row i belongs to step i."""

    solver: str
    timesteps: Float32
    P: Float32
    Q: Float32
    A: Float32
    B: Float32
    C: Float32

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def first(self) -> Float32:
        """1 at the row that receives pure noise and must add the prior shift to it, else 0."""
        return np.eye(1, len(self), dtype=np.float32)[0]


def alphas_cumprod(schedule: str, timesteps: int) -> Float64:
    """alpha_bar float64 [timesteps], falling; `linear` is DDPM's, `scaled_linear` LDM's, `cosine` Improved DDPM's."""
    if schedule == "linear":
        betas = np.linspace(1e-4, 0.02, timesteps)
    elif schedule == "scaled_linear":
        betas = np.linspace(0.00085**0.5, 0.012**0.5, timesteps) ** 2
    elif schedule == "cosine":
        edges = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.clip(1 - edges[1:] / edges[:-1], 0, 0.999)
    else:
        raise ConfigInvalid(f"diffusion.schedule is {schedule!r}; use one of {', '.join(SCHEDULES)}")
    return np.asarray(np.cumprod(1.0 - betas), dtype=np.float64)


def step_table(alpha_bar: Float64, steps: int, solver: str, prediction: str) -> StepTable:
    """The table of `steps` steps from pure noise to x0 with trailing timesteps (the last train step comes first)."""
    if not 1 <= steps <= len(alpha_bar):
        raise ConfigInvalid(f"a table of {steps} steps needs 1 to {len(alpha_bar)} steps; ask for fewer")
    times = np.round(len(alpha_bar) * (1 - np.arange(steps) / steps)).astype(int) - 1
    alpha = np.sqrt(alpha_bar[times])
    sigma = np.sqrt(1 - alpha_bar[times])
    P, Q = denoised_coefficients(alpha, sigma, prediction)
    alpha_next, sigma_next = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    if solver == "ddim":
        A, B, C = ddim(alpha, sigma, alpha_next, sigma_next)
    elif solver == "dpmpp_2m":
        A, B, C = dpmpp_2m(alpha, sigma, alpha_next, sigma_next)
    else:
        raise ConfigInvalid(f"solver is {solver!r}; use one of {', '.join(SOLVERS)}")
    return StepTable(solver, *(np.asarray(c, dtype=np.float32) for c in (times, P, Q, A, B, C)))


def denoised_coefficients(alpha: Float64, sigma: Float64, prediction: str) -> tuple[Float64, Float64]:
    """P, Q of x0 = P·x + Q·net, for nets that predict the noise (SCLDM eq. 6) or v = alpha eps - sigma x0."""
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction == "v":
        return alpha, -sigma
    raise ConfigInvalid(f"diffusion.prediction is {prediction!r}; use one of {', '.join(PREDICTIONS)}")


def ddim(alpha: Float64, sigma: Float64, alpha_next: Float64, sigma_next: Float64) -> tuple[Float64, Float64, Float64]:
    """Deterministic DDIM (eta = 0; Song et al. 2021, eq. 12) as A, B, C."""
    A = sigma_next / sigma
    return A, alpha_next - A * alpha, np.zeros_like(A)


def dpmpp_2m(
    alpha: Float64, sigma: Float64, alpha_next: Float64, sigma_next: Float64
) -> tuple[Float64, Float64, Float64]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), first order at the first and the last step."""
    A = sigma_next / sigma
    K = alpha_next - A * alpha  # = alpha_next (1 - exp(-h))
    with np.errstate(divide="ignore"):
        h = np.log(alpha_next / sigma_next) - np.log(alpha / sigma)
    C = np.zeros_like(A)
    C[1:-1] = -K[1:-1] * h[1:-1] / (2 * h[:-2])
    return A, K - C, C
