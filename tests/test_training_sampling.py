"""The step tables reproduce the published solvers on a problem whose answer is known."""

import numpy as np
import pytest
import torch

from runtime.errors import ConfigInvalid
from training.sampler import sample
from training.sampling import DDPM_SOLVERS, PREDICTIONS, SCHEDULES, alphas_cumprod, step_table
from training.schedule import leaps, search, spacings

MEAN, STD = 1.5, 0.6  # the data are N(MEAN, STD²): the best denoiser is then known in closed form


def perfect_prediction(x, alpha_bar, prediction):
    """E[eps | x] or E[v | x] for Gaussian data."""
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
    eps = (x - alpha * x0) / sigma
    return eps if prediction == "epsilon" else alpha * eps - sigma * x0


def run(table, alpha_bar, prediction, x):
    x = x.astype(np.float64)
    history = np.zeros_like(x)
    for i in range(len(table)):
        net = perfect_prediction(x, alpha_bar[int(table.timesteps[i])], prediction)
        x0 = table.P[i] * x + table.Q[i] * net
        x, history = table.A[i] * x + table.B[i] * x0 + table.C[i] * history, x0
    return x


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_fall_from_clean_to_noise(schedule):
    alpha_bar = alphas_cumprod(schedule, 1000)
    assert alpha_bar.shape == (1000,)
    assert np.all(np.diff(alpha_bar) < 0)
    assert alpha_bar[0] > 0.99
    assert 0 <= alpha_bar[-1] < 0.01


@pytest.mark.parametrize("solver", DDPM_SOLVERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_many_steps_land_on_the_data_distribution(solver, prediction):
    alpha_bar = alphas_cumprod("linear", 1000)
    noise = np.random.default_rng(0).standard_normal(20_000)
    x = run(step_table(alpha_bar, 100, solver, prediction), alpha_bar, prediction, noise)
    assert x.mean() == pytest.approx(MEAN, abs=0.02)
    assert x.std() == pytest.approx(STD, abs=0.03)


def test_second_order_is_nearer_to_the_limit_than_ddim():
    alpha_bar = alphas_cumprod("linear", 1000)
    noise = np.linspace(-2, 2, 201)
    exact = run(step_table(alpha_bar, 1000, "ddim", "v"), alpha_bar, "v", noise)
    errors = {
        s: np.abs(run(step_table(alpha_bar, 12, s, "v"), alpha_bar, "v", noise) - exact).mean() for s in DDPM_SOLVERS
    }
    assert errors["dpmpp_2m"] < 0.6 * errors["ddim"]  # the last step is first order in both


def test_predictions_are_two_forms_of_one_sampler():
    alpha_bar = alphas_cumprod("cosine", 1000)
    noise = np.linspace(-2, 2, 51)
    a, b = (run(step_table(alpha_bar, 8, "dpmpp_2m", p), alpha_bar, p, noise) for p in PREDICTIONS)
    np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.parametrize("steps", [1, 2, 4, 25])
def test_last_step_returns_the_denoised_sample(steps):
    for solver in DDPM_SOLVERS:
        table = step_table(alphas_cumprod("linear", 1000), steps, solver, "v")
        assert (table.A[-1], table.B[-1], table.C[-1]) == (0, 1, 0)
        assert list(table.first) == [1] + [0] * (steps - 1)
        assert table.timesteps[0] == 999
        assert np.all(np.diff(table.timesteps) < 0)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(steps):
    with pytest.raises(ConfigInvalid, match="steps"):
        step_table(alphas_cumprod("linear", 1000), steps, "ddim", "v")


def test_unknown_names_are_refused():
    with pytest.raises(ConfigInvalid, match="linear"):
        alphas_cumprod("quadratic", 10)
    with pytest.raises(ConfigInvalid, match="ddim"):
        step_table(alphas_cumprod("linear", 10), 2, "euler", "v")
    with pytest.raises(ConfigInvalid, match="epsilon"):
        step_table(alphas_cumprod("linear", 10), 2, "ddim", "x0")


def test_spacing_moves_steps_towards_little_noise():
    even, late = (step_table(alphas_cumprod("linear", 1000), 8, "ddim", "v", spacing).timesteps for spacing in (1, 2))
    assert even[0] == late[0] == 999
    assert np.all(late[1:] < even[1:])


def test_leaps_are_all_ways_to_share_one_out():
    for steps, count in ((1, 1), (2, 1), (4, 3)):
        found = leaps(steps, 5)
        assert len(found) == len(set(found)) == count
        assert all(len(sizes) == steps and sum(sizes) == 1 for sizes in found)
    assert leaps(4, 5)[0] == (0.25,) * 4


def test_search_finds_the_table_nearest_to_many_steps():
    alpha_bar = alphas_cumprod("linear", 1000)
    source = torch.linspace(-2, 2, 64).view(64, 1, 1, 1).double()

    def network(x, timestep, level):
        return torch.from_numpy(perfect_prediction(x.numpy(), alpha_bar[int(timestep)], "v"))

    tables = {(s,): step_table(alpha_bar, 4, "ddim", "v", s) for (s,) in spacings()}
    fine = step_table(alpha_bar, 200, "ddim", "v")
    (best,) = search(network, source, tables, fine, 9.0)
    errors = {s: float((sample(network, source, t, 9.0) - sample(network, source, fine, 9.0)).square().mean())
              for (s,), t in tables.items()}  # fmt: skip
    assert errors[best] == min(errors.values())
    assert errors[best] < 0.7 * errors[1.0]
