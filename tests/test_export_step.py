"""The step graph is a sampler: its loop equals textbook DDIM, DPM-Solver++(2M) and flow, written here in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import onnxruntime
import pytest
import torch

from export.attention import CrossAttention, VoiceMatrices, cross_attention_layers, split_matrices
from export.graphs import Signature, export_graph
from export.modules import DecoderGraph, step_graph
from runtime.bundle import PRIOR_MODES
from tests.toy_system import CHANNELS, SIZE, TOKENS, WIDTH, toy_rows, toy_system, toy_tensors

SHAPE = (2, CHANNELS, SIZE, SIZE)
CASES = [
    ("add", "v", "ddim", 4),
    ("interpolate", "v", "dpmpp_2m", 6),
    ("subtract", "epsilon", "ddim", 6),
    ("none", "v", "dpmpp_2m", 4),
]


class Loop:
    """The host's loop over the exported graph; a second table in front makes a wrong first row show."""

    def __init__(self, system, solver, steps):
        rows = toy_rows(system, (2, steps), solver)
        signature = Signature("unet", *toy_tensors(system, rows)["unet"])
        data = export_graph(step_graph(system, rows), signature, float16=False, producer="x 1")
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.rows = range(rows.first_row[steps], rows.first_row[steps] + steps)
        self.matrices = VoiceMatrices(system.denoiser)

    def __call__(self, noise, tokens, **options):
        """`options`: guidance, prior_weight, where the graph has them."""
        feeds = {name: np.float32([value]) for name, value in options.items()}
        with torch.no_grad():
            feeds["condition"] = self.matrices(torch.from_numpy(tokens)).numpy()
        state = {"latent": noise}
        if "history" in [value.name for value in self.session.get_inputs()]:
            state["history"] = np.zeros_like(noise)
        for row in self.rows:
            results = self.session.run(None, {**state, **feeds, "step": np.int64([row])})
            state = dict(zip(state, results, strict=True))
        return state["latent"]


def textbook(system, solver, steps, *, noise, condition, guidance):
    """x' of the last step from the papers' formulas: alpha, sigma, lambda; no tables, float64 throughout."""
    net, mode, w = copy.deepcopy(system.denoiser).double(), system.prior_mode, system.prior_weight
    prior = system.prior.double().numpy()
    shifts = {
        "add": (1, w * prior),
        "subtract": (1, -w * prior),
        "interpolate": (1 - w, w * prior),
        "none": (1, 0 * prior),
    }
    s, d = shifts[mode]
    alpha_bar = system.alphas_cumprod
    times = [round(len(alpha_bar) * (1 - i / steps)) - 1 for i in range(steps)]
    alphas = [math.sqrt(alpha_bar[t]) for t in times] + [1.0]
    sigmas = [math.sqrt(1 - alpha_bar[t]) for t in times] + [0.0]
    lambdas = [math.log(a / b) if b else math.inf for a, b in zip(alphas, sigmas, strict=True)]

    def predict(x, t):
        args = torch.from_numpy(s * x + d), torch.full((len(x),), float(t), dtype=torch.float64)
        with torch.no_grad():
            null = net(*args, net.null_tokens.repeat(len(x), 1, 1)).numpy()
            return null + guidance * (net(*args, torch.from_numpy(condition).double()).numpy() - null)

    x, previous = noise.astype(np.float64), None
    for i, t in enumerate(times):
        alpha, sigma, alpha_next, sigma_next = alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1]
        output = predict(x, t)
        x0 = alpha * x - sigma * output if system.prediction == "v" else (x - sigma * output) / alpha
        x0 = np.clip(x0, -system.config.diffusion.latent_clip, system.config.diffusion.latent_clip)
        if solver == "ddim":
            epsilon = (x - alpha * x0) / sigma
            x = alpha_next * x0 + sigma_next * epsilon
        else:
            h = lambdas[i + 1] - lambdas[i]
            D = x0
            if previous is not None and i + 1 < steps:
                r = (lambdas[i] - lambdas[i - 1]) / h
                D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
            x = sigma_next / sigma * x - alpha_next * math.expm1(-h) * D
        previous = x0
    return s * x + d


@pytest.mark.parametrize(("mode", "prediction", "solver", "steps"), CASES)
def test_loop_equals_the_textbook_solver(mode, prediction, solver, steps):
    system = toy_system(mode=mode, prediction=prediction)
    rng = np.random.default_rng(5)
    noise = rng.standard_normal(SHAPE).astype(np.float32)
    condition = rng.standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
    ours = Loop(system, solver, steps)(noise, condition, guidance=1.7)
    expected = textbook(system, solver, steps, noise=noise, condition=condition, guidance=1.7)
    np.testing.assert_allclose(ours, expected, atol=2e-4 if prediction == "v" else 2e-3)
    assert np.abs(expected).max() > 0.1


def test_guidance_zero_forgets_the_voice_and_one_is_the_condition_alone():
    system = toy_system()
    rng = np.random.default_rng(6)
    noise = rng.standard_normal(SHAPE).astype(np.float32)
    a, b = (rng.standard_normal((2, TOKENS, WIDTH)).astype(np.float32) for _ in range(2))
    loop = Loop(system, "ddim", 4)
    zero = [loop(noise, c, guidance=0.0) for c in (a, b)]
    one = [loop(noise, c, guidance=1.0) for c in (a, b)]
    np.testing.assert_array_equal(*zero)
    assert np.abs(one[0] - one[1]).max() > 1e-3


def euler(system, steps, *, noise, tokens, weight):
    """Rectified flow (Liu et al. 2023) in equal steps, float64: x' = x − u/n with u from the definition of v.

    The network sees DDPM's x at the timestep of the same signal-to-noise ratio; level 1 + log2 n is the step size.
    """
    net, alpha_bar = copy.deepcopy(system.denoiser).double(), system.alphas_cumprod
    x = noise.astype(np.float64) + weight * system.prior.double().numpy()
    ratios = np.sqrt((1 - alpha_bar) / alpha_bar)
    for i in range(steps):
        t = 1 - i / steps
        n = math.hypot(1 - t, t)
        ratio = t / (1 - t) if t < 1 else math.inf
        time = np.interp(math.atan(ratio), np.arctan(ratios), np.arange(len(ratios)))
        times = torch.full((len(x),), np.float32(time).item(), dtype=torch.float64)
        levels = torch.full((len(x),), 1 + round(math.log2(steps)))
        with torch.no_grad():
            v = net(torch.from_numpy(x / n), times, torch.from_numpy(tokens).double(), levels).numpy()
        clean = ((1 - t) * (x / n) - t * v) / n  # x0 = alpha z − sigma v, with alpha = (1 − t)/n and sigma = t/n
        clean = np.clip(clean, -system.config.diffusion.latent_clip, system.config.diffusion.latent_clip)
        x = x - (x - clean) / t / steps
    return x


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("weight", [0.0, 0.9])
def test_shortcut_loop_equals_the_flow(steps, weight):
    system = toy_system(arm="shortcut")
    rng = np.random.default_rng(8)
    noise = rng.standard_normal(SHAPE).astype(np.float32)
    tokens = rng.standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
    ours = Loop(system, "shortcut", steps)(noise, tokens, prior_weight=weight)
    np.testing.assert_allclose(ours, euler(system, steps, noise=noise, tokens=tokens, weight=weight), atol=2e-4)
    assert np.abs(ours).max() > 0.1


def test_shortcut_prior_weight_matters_in_the_first_step_alone():
    loop = Loop(toy_system(arm="shortcut"), "shortcut", 4)
    rng = np.random.default_rng(9)
    noise = rng.standard_normal(SHAPE).astype(np.float32)
    tokens = rng.standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
    assert np.abs(loop(noise, tokens, prior_weight=0.9) - loop(noise, tokens, prior_weight=0.0)).max() > 1e-2
    loop.rows = loop.rows[1:]
    np.testing.assert_array_equal(loop(noise, tokens, prior_weight=0.9), loop(noise, tokens, prior_weight=0.0))


def test_only_the_first_row_shifts_its_input():
    rows = toy_rows(toy_system(mode="add", weight=0.5), (2, 3), "ddim")
    assert rows.first_row == {2: 0, 3: 2}
    assert rows.column("first").tolist() == [1, 0, 1, 0, 0]


def test_shortcut_decoder_removes_nothing():
    """The prior lies in what sampling starts from: it is no part of the latent that comes out."""
    system = toy_system(arm="shortcut")
    latent = torch.randn(2, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    decoder, seen = DecoderGraph(system), []
    decoder.face_decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder(latent)
    expected = latent * system.latent_std[:, None, None] + system.latent_mean[:, None, None]
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("attention_first", [False, True])
def test_matrices_are_the_cross_attention(attention_first):
    """Every layer's own attention over the tokens, against its two matrices out of the condition."""
    denoiser = toy_system(attention_first=attention_first).denoiser
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, TOKENS, WIDTH, generator=generator)
    layers = cross_attention_layers(denoiser)
    assert len({layer.to_q.in_features for layer in layers}) == (2 if attention_first else 1)
    with torch.no_grad():
        matrices = split_matrices(VoiceMatrices(denoiser)(tokens), denoiser)
        for index, layer in enumerate(layers):
            x = torch.randn(2, 9, layer.to_q.in_features, generator=generator)
            torch.testing.assert_close(CrossAttention(index)(layer, x, matrices), layer(x, tokens))


@pytest.mark.parametrize("mode", PRIOR_MODES)
def test_decoder_removes_what_the_mode_added(mode):
    """z of x' from the paper's three formulas (SCLDM eq. 2), written out."""
    system = toy_system(mode=mode, weight=0.25)
    z, p = torch.randn(2, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double(), system.prior
    shifted = {"add": z + p / 4, "subtract": z - p / 4, "interpolate": 0.75 * z + p / 4, "none": z}[mode]
    decoder = DecoderGraph(system)
    seen = []
    decoder.face_decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder(shifted.float())
    expected = z * system.latent_std[:, None, None] + system.latent_mean[:, None, None]
    torch.testing.assert_close(seen[0].double(), expected, atol=1e-5, rtol=0)
