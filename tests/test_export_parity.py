"""Parity: every graph and the chain against training's own code; what differs is not written."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export import pipeline
from export.modules import StepGraph
from export.options import ExportOptions
from export.parity import check_parity, speech_like
from export.pipeline import export_system
from runtime.errors import ParityFailed
from tests.toy_system import toy_system
from training.sampling import step_table

OPTIONS = ExportOptions(steps=(2, 4), default_steps=4)


@pytest.fixture(scope="module")
def made():
    """A toy system, its tables and its graphs, float32."""
    system = toy_system()
    rows = pipeline.StepRows.of({4: step_table(system.alphas_cumprod, 4, "dpmpp_2m", "v")})
    shapes = pipeline._shapes(system)
    options = dataclasses.replace(OPTIONS, store="float32")
    return system, rows, pipeline._export_graphs(system, rows, pipeline.stage_tensors(*shapes), options)


@pytest.mark.parametrize(
    ("stage", "constant", "factor", "place"),
    [
        ("unet", "B", 1.01, "step 0 of 4"),
        ("unet", "C", 1.05, "step 1 of 4"),
        ("unet", "offset", -1, "step 0 of 4"),
        ("decoder", "bias", 0.9, "seed 0"),
    ],
)
def test_parity_notices_a_wrong_constant(made, stage, constant, factor, place):
    system, rows, graphs = made
    model = onnx.load_from_string(graphs[stage])
    (tensor,) = (t for t in model.graph.initializer if t.name == constant)
    wrong = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, constant))
    with pytest.raises(ParityFailed, match=rf"{stage}.*{place}.*differs"):
        check_parity(system, rows, {**graphs, stage: model.SerializeToString()})


@pytest.mark.parametrize("mode", ["subtract", "none", "interpolate"])
def test_parity_notices_another_prior_mode(made, mode):
    _, rows, graphs = made
    with pytest.raises(ParityFailed, match=r"unet: case seed 0, step 0"):
        check_parity(toy_system(mode=mode), rows, graphs)


def test_small_differences_that_add_up_fail_the_chain(tmp_path, monkeypatch):
    """Each graph is within its limit; a decoder of high contrast makes the sum over the steps visible."""

    class Drifting(StepGraph):
        def forward(self, *inputs):
            latent, history = super().forward(*inputs)
            return latent + 7e-5, history

    system = toy_system()
    with torch.no_grad():
        system.face_decoder.layers[3].weight *= 3000
    monkeypatch.setattr(pipeline, "StepGraph", Drifting)
    with pytest.raises(ParityFailed, match="whole chain"):
        export_system(system, tmp_path / "b", dataclasses.replace(OPTIONS, store="float32"))
    assert list(tmp_path.iterdir()) == []


def test_parity_failure_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "DecoderGraph", lambda system: _Brighter(graphs_decoder(system)))
    with pytest.raises(ParityFailed, match="decoder"):
        export_system(toy_system(), tmp_path / "b", OPTIONS)
    assert list(tmp_path.iterdir()) == []


graphs_decoder = pipeline.DecoderGraph


class _Brighter(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, latent):
        return (self.inner(latent).float() * 0.9).to(torch.uint8)


def test_epsilon_prediction_says_what_it_allows(tmp_path):
    result = export_system(toy_system(prediction="epsilon"), tmp_path / "b", OPTIONS)
    (row,) = (r for r in result.parity.stages if r.stage == "unet")
    assert row.max_abs <= row.tolerance
    assert row.tolerance > 1e-4
    card = (result.path / "MODEL_CARD.md").read_text("utf-8")
    assert f"| {row.max_abs:.2g} | {row.tolerance:.2g} |" in card
    assert "A row allows more than 0.0001" in card


def test_parity_signals_are_within_range():
    for seed in range(4):
        pcm = speech_like(seed, 2)
        assert pcm.dtype == np.float32
        assert 0.01 < np.abs(pcm).max() <= 1
