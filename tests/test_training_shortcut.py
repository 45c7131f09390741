"""The shortcut stage on velocity fields whose answer is known, and the critic's two losses kept apart."""

import dataclasses

import numpy as np
import pytest
import torch

from runtime.errors import ConfigInvalid
from training.arms import GUIDANCE
from training.config import load_config
from training.decoder import PatchCritic, adversarial, adversarial_weight
from training.models.denoiser import Denoiser
from training.sampling import alphas_cumprod, flow_timestep, shortcut_table
from training.shortcut import Batch, Flow, leap_as_it_flows, shortcut_loss, source

ALPHA_BAR = alphas_cumprod("linear", 1000)
MEAN, STD = 0.7, 0.5


class GaussianDenoiser(torch.nn.Module):
    """The perfect v-network of data N(m, STD²), where m is MEAN times the first token; m = 0 without a condition."""

    def __init__(self):
        super().__init__()
        self.null_tokens = torch.zeros(1, 1, 1)
        self.levels = []

    def tokens(self, embedding):
        return embedding[:, :1, None]

    def forward(self, x, t, tokens, level=None):
        self.levels.append(None if level is None else level.tolist())
        alpha = torch.from_numpy(np.interp(t.numpy(), np.arange(1000), np.sqrt(ALPHA_BAR))).float().view(-1, 1, 1, 1)
        sigma = (1 - alpha**2).sqrt()
        mean = MEAN * tokens[:, 0, 0].view(-1, 1, 1, 1)
        x0 = mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * mean)
        return alpha * (x - alpha * x0) / sigma - sigma * x0


@pytest.fixture
def flow():
    return Flow(load_config("demo"), GaussianDenoiser())


@pytest.mark.parametrize("sizes", [(1.0,), (0.5, 0.5), (0.25,) * 4, (0.5, 0.25, 0.125, 0.125)])
def test_table_of_leaps_ends_on_the_denoised_sample(sizes):
    table = shortcut_table(ALPHA_BAR, sizes)
    assert len(table) == len(sizes)
    assert table.timesteps[0] == 999
    assert np.all(np.diff(table.timesteps) < 0)
    assert (table.A[-1], table.B[-1]) == (0, 1)
    assert not table.C.any()
    np.testing.assert_array_equal(2.0 ** (1 - table.levels), sizes)


@pytest.mark.parametrize("sizes", [(), (0.5,), (0.3, 0.7), (0.5, 0.25), (2.0, -1.0), (0.75, 0.25)])
def test_leaps_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ConfigInvalid, match="sum to 1"):
        shortcut_table(ALPHA_BAR, sizes)


def test_flow_time_and_timestep_have_the_same_signal_to_noise_ratio():
    t = np.linspace(0.02, 0.98, 49)
    alpha = np.interp(flow_timestep(ALPHA_BAR, t), np.arange(1000), np.sqrt(ALPHA_BAR))
    np.testing.assert_allclose(alpha / np.sqrt(1 - alpha**2), (1 - t) / t, rtol=0.02)


def test_a_perfect_v_network_is_a_perfect_flow(flow):
    """E[x1 - x0 | x_t] of Gaussian data, in closed form."""
    t = np.array([0.1, 0.5, 0.9, 1.0])
    x = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    got = flow.velocity(x, t, np.zeros(4, dtype=np.int64), torch.ones(4, 1, 1))
    keep, noise = torch.tensor(1 - t).view(-1, 1, 1, 1), torch.tensor(t).view(-1, 1, 1, 1)
    spread = keep**2 * STD**2 + noise**2
    x0 = MEAN + keep * STD**2 / spread * (x - keep * MEAN)
    x1 = noise / spread * (x - keep * MEAN)
    torch.testing.assert_close(got, (x1 - x0).float(), atol=2e-2, rtol=0)


def test_table_and_velocity_are_the_same_step(flow):
    table, x = shortcut_table(ALPHA_BAR, [0.25] * 4), torch.randn(1, 1, 2, 2)
    tokens = torch.ones(1, 1, 1)
    for i, t in enumerate((1.0, 0.75, 0.5, 0.25)):
        net = flow.denoiser(float(table.S[i]) * x, torch.tensor([table.timesteps[i]]), tokens)
        by_table = table.A[i] * x + table.B[i] * (table.P[i] * x + table.Q[i] * net)
        by_velocity = x - 0.25 * flow.velocity(x, np.array([t]), np.array([3]), tokens)
        torch.testing.assert_close(by_table, by_velocity, atol=1e-5, rtol=1e-5)


def test_targets_are_two_half_steps_of_the_next_level(flow):
    x, k, t = torch.randn(3, 1, 2, 2), np.array([1, 2, 5]), np.array([1.0, 0.5, 1.0])
    target = flow.two_half_steps(x, t, k, torch.ones(3, 1, 1))
    assert flow.denoiser.levels[0] == [2, 3, 0]
    second = x - torch.tensor(0.5**k).float().view(-1, 1, 1, 1) * flow.guided(
        x, t, np.array([2, 3, 0]), torch.ones(3, 1, 1)
    )
    landed = flow.guided(second, t - 0.5**k, np.array([2, 3, 0]), torch.ones(3, 1, 1))
    start = flow.guided(x, t, np.array([2, 3, 0]), torch.ones(3, 1, 1))
    torch.testing.assert_close(target, (start + landed) / 2)


def test_guidance_is_folded_into_the_finest_steps_only(flow):
    x, t, tokens = torch.zeros(1, 1, 2, 2), np.array([0.5]), torch.ones(1, 1, 1)
    plain, leap = (flow.velocity(x, t, np.array([level]), tokens) for level in (0, 3))
    free = flow.velocity(x, t, np.array([0]), torch.zeros(1, 1, 1))
    torch.testing.assert_close(flow.guided(x, t, np.array([0]), tokens), free + GUIDANCE * (plain - free))
    torch.testing.assert_close(flow.guided(x, t, np.array([3]), tokens), leap)


def test_loss_gives_gradients_to_matching_and_to_leaps():
    config = load_config("tiny")
    torch.manual_seed(0)
    denoiser = Denoiser(config)
    rng = np.random.default_rng(0)
    batch = Batch(torch.randn(8, 4, 8, 8), torch.randn(8, 4, 8, 8), torch.randn(8, 32), torch.arange(8) == 0)
    values = shortcut_loss(Flow(config, denoiser), batch, rng)
    torch.testing.assert_close(values["loss"], (values["matching"] + values["consistency"]) / 2)
    values["loss"].backward()
    gradient = denoiser.unet.class_embedding.weight.grad
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() > 0


def test_a_new_step_size_does_not_disturb_the_trained_network():
    """The diffusion stage has trained the embedding of level 0 with the rest."""
    denoiser = Denoiser(load_config("tiny")).eval()
    torch.nn.init.normal_(denoiser.unet.class_embedding.weight[0])
    leap_as_it_flows(denoiser)
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([5.0, 500.0]), torch.randn(2, 2, 16)
    with torch.no_grad():
        torch.testing.assert_close(denoiser(x, t, tokens, torch.tensor([1, 3])), denoiser(x, t, tokens))


def test_source_covers_the_served_weights_and_none():
    rng, prior = np.random.default_rng(0), torch.ones(1, 2, 2)
    weights = source(torch.zeros(400, 1, 2, 2), prior, (0.0, 0.1), rng)[:, 0, 0, 0]
    assert float(weights.max()) == pytest.approx(0.1, abs=0.005)
    assert 0.05 < float((weights == 0).float().mean()) < 0.2


def test_critic_and_decoder_do_not_move_each_other():
    critic, drawn = PatchCritic(), torch.rand(2, 3, 32, 32, requires_grad=True)
    fooling, judging = adversarial(critic, drawn, torch.rand(2, 3, 32, 32))
    fooling.backward(retain_graph=True)
    assert all(p.grad is None for p in critic.parameters())
    assert drawn.grad.abs().sum() > 0
    drawn.grad = None
    judging.backward()
    assert drawn.grad is None
    assert all(layer.weight.grad.abs().sum() > 0 for layer in critic.layers)


def test_critic_comes_after_reconstruction():
    settings = dataclasses.replace(load_config("demo").decoder, steps=100, adversarial_weight=0.2)
    assert [adversarial_weight(settings, step) for step in (0, 40, 50, 60, 99)] == pytest.approx([0, 0, 0.1, 0.2, 0.2])
