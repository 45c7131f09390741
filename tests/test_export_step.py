"""The step graph is a sampler: its loop equals textbook DDIM and DPM-Solver++(2M), written here in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import onnxruntime
import pytest
import torch

from export.graphs import Signature, export_graph
from export.modules import DecoderGraph, StepGraph, StepRows
from runtime.bundle import PRIOR_MODES, ConditionSpec, ImageSpec, LatentSpec, stage_tensors
from tests.toy_system import CHANNELS, SIZE, TOKENS, WIDTH, toy_system
from training.sampling import step_table

SHAPE = (2, CHANNELS, SIZE, SIZE)
TENSORS = stage_tensors(LatentSpec(CHANNELS, SIZE, SIZE), ImageSpec(32, 32), ConditionSpec(TOKENS, WIDTH))["unet"]
CASES = [
    ("add", "v", "ddim", 4),
    ("interpolate", "v", "dpmpp_2m", 6),
    ("subtract", "epsilon", "ddim", 6),
    ("none", "v", "dpmpp_2m", 4),
]


class Loop:
    """The host's loop over the exported graph; a second table in front makes a wrong first row show."""

    def __init__(self, system, solver, steps):
        tables = {n: step_table(system.alphas_cumprod, n, solver, system.prediction) for n in (2, steps)}
        rows = StepRows.of(tables)
        data = export_graph(StepGraph(system, rows), Signature("unet", *TENSORS), float16=False, producer="x 1")
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.rows = range(rows.first_row[steps], rows.first_row[steps] + steps)

    def __call__(self, noise, condition, guidance):
        latent, history = noise, np.zeros_like(noise)
        for row in self.rows:
            feeds = {"latent": latent, "history": history, "condition": condition, "guidance": np.float32([guidance])}
            latent, history = self.session.run(None, feeds | {"step": np.int64([row])})
        return latent


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
    ours = Loop(system, solver, steps)(noise, condition, 1.7)
    expected = textbook(system, solver, steps, noise=noise, condition=condition, guidance=1.7)
    np.testing.assert_allclose(ours, expected, atol=2e-4 if prediction == "v" else 2e-3)
    assert np.abs(expected).max() > 0.1


def test_guidance_zero_forgets_the_voice_and_one_is_the_condition_alone():
    system = toy_system()
    rng = np.random.default_rng(6)
    noise = rng.standard_normal(SHAPE).astype(np.float32)
    a, b = (rng.standard_normal((2, TOKENS, WIDTH)).astype(np.float32) for _ in range(2))
    loop = Loop(system, "ddim", 4)
    zero = [loop(noise, c, 0.0) for c in (a, b)]
    one = [loop(noise, c, 1.0) for c in (a, b)]
    np.testing.assert_array_equal(*zero)
    assert np.abs(one[0] - one[1]).max() > 1e-3


def test_only_the_first_row_shifts_its_input():
    system = toy_system(mode="add", weight=0.5)
    rows = StepRows.of({n: step_table(system.alphas_cumprod, n, "ddim", "v") for n in (2, 3)})
    graph = StepGraph(system, rows)
    assert rows.first_row == {2: 0, 3: 2}
    assert graph.first.tolist() == [1, 0, 1, 0, 0]


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
