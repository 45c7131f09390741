"""Noise schedules and the step tables that every sampler here reduces to.

A sampler is a table. One row per step holds the timestep, the step-size level and the constants of

    x0     = clip(P·x + Q·net(S·x, timestep, level), ±latent_clip)
    x_next = A·x + B·x0 + C·x0_previous

so the same two lines run in the training previews, in the exported step graph and in its parity reference.
DDPM notation: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps (SCLDM eq. 4). Rectified flow (Liu et al. 2023):
x_t = (1 - t) x_0 + t x_1, velocity u = x_1 - x_0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ConfigInvalid

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

SCHEDULES = ("linear", "scaled_linear", "cosine")
PREDICTIONS = ("epsilon", "v")
DDPM_SOLVERS = ("ddim", "dpmpp_2m")


@dataclass(frozen=True)
class StepTable:
    """Coefficients of one sampler run: every array is float32 [n], row i belongs to step i."""

    solver: str
    timesteps: Float32
    levels: Float32  # whole numbers; see `shortcut_table`
    S: Float32
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


def step_table(alpha_bar: Float64, steps: int, solver: str, prediction: str, spacing: float = 1.0) -> StepTable:
    """The table of `steps` steps from pure noise to x0 with trailing timesteps (the last train step comes first).

    `spacing`: 1 spaces them evenly, more moves them towards little noise: T·(1 − i/n)^spacing.
    """
    times = np.round(len(alpha_bar) * (1 - np.arange(max(steps, 0)) / max(steps, 1)) ** spacing).astype(int) - 1
    if not 1 <= steps <= len(alpha_bar) or np.any(np.diff(times) >= 0) or times[-1] < 0:
        raise ConfigInvalid(
            f"{steps} steps with spacing {spacing:g} do not fit {len(alpha_bar)} timesteps; ask for fewer"
        )
    alpha = np.sqrt(alpha_bar[times])
    sigma = np.sqrt(1 - alpha_bar[times])
    P, Q = denoised_coefficients(alpha, sigma, prediction)
    alpha_next, sigma_next = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    if solver == "ddim":
        A, B, C = ddim(alpha, sigma, alpha_next, sigma_next)
    elif solver == "dpmpp_2m":
        A, B, C = dpmpp_2m(alpha, sigma, alpha_next, sigma_next)
    else:
        raise ConfigInvalid(f"solver is {solver!r}; use one of {', '.join(DDPM_SOLVERS)}")
    levels, S = np.zeros(steps), np.ones(steps)
    return StepTable(solver, *(np.asarray(c, dtype=np.float32) for c in (times, levels, S, P, Q, A, B, C)))


def shortcut_table(alpha_bar: Float64, sizes: Sequence[float]) -> StepTable:
    """The table of a shortcut model (Frans et al. 2024) whose steps have these sizes, powers of 1/2 that sum to 1.

    A network that predicts v on inputs of unit variance serves rectified flow as it is: with n² = (1-t)² + t², x_t/n
    is DDPM's x at the timestep of equal signal-to-noise ratio, so x0 = (1-t)/n² x_t - t/n v. A step of size d along
    u = (x_t - x0)/t ends at (1 - d/t) x_t + d/t x0. Level k tells the network the step size 2^(1-k); 0 would be
    infinitesimal.
    """
    d = np.asarray(sizes, dtype=np.float64)
    levels = 1 - np.log2(d) if d.size and (d > 0).all() else np.array([np.nan])
    if not np.array_equal(levels, np.round(levels)) or d.sum() != 1:
        raise ConfigInvalid(f"step sizes {tuple(sizes)} must be powers of 1/2 that sum to 1")
    t = 1 - np.append(0, np.cumsum(d)[:-1])
    n = np.hypot(1 - t, t)
    timesteps = flow_timestep(alpha_bar, t)
    if np.any(np.diff(timesteps) >= 0):
        raise ConfigInvalid(f"step sizes {tuple(sizes)} are finer than the noisy end of the schedule; use larger ones")
    columns = timesteps, levels, 1 / n, (1 - t) / n**2, -t / n, 1 - d / t, d / t, np.zeros_like(d)
    return StepTable("shortcut", *(np.asarray(c, dtype=np.float32) for c in columns))


def flow_timestep(alpha_bar: Float64, t: Float64) -> Float64:
    """DDPM's timestep (fractional) at which alpha/sigma is that of rectified flow at time t, 0 < t <= 1."""
    angle = np.arctan2(np.sqrt(1 - alpha_bar), np.sqrt(alpha_bar))
    return np.interp(np.arctan2(t, 1 - t), angle, np.arange(len(alpha_bar)))


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
