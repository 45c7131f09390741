"""Parity: every graph and the chain against training's own code; what differs is not written."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export import parity, pipeline
from export.modules import DiffusionStep, step_graph
from export.options import ExportOptions
from export.parity import check_parity, speech_like
from export.pipeline import export_system
from runtime.errors import ParityFailed
from tests.toy_system import toy_rows, toy_system, toy_tensors
from training.arms import GUIDANCE

OPTIONS = ExportOptions(steps=(2, 4), default_steps=4)


def make(arm):
    """A toy system, its tables and its graphs, float32."""
    system = toy_system(arm=arm)
    rows = toy_rows(system, (4,))
    options = dataclasses.replace(OPTIONS, store="float32")
    return system, rows, pipeline._export_graphs(system, rows, toy_tensors(system, rows), options)


@pytest.fixture(scope="module")
def made():
    return make("diffusion")


@pytest.fixture(scope="module")
def made_shortcut():
    return make("shortcut")


def spoil(data, name, factor, column=None):
    """The graph with a constant, or one column of its table, multiplied by a factor."""

    def multiply(value):
        value[(slice(None), column) if column is not None else ...] *= np.float32(factor)

    return changed(data, name, multiply)


def changed(data, name, change):
    """The graph with a constant that `change` has worked on in place."""
    model = onnx.load_from_string(data)
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    wrong = onnx.numpy_helper.to_array(tensor).copy()
    change(wrong)
    tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, name))
    return model.SerializeToString()


def column_of(system, rows, name):
    """Where a coefficient stands in the row table: after the constants of the residual blocks."""
    graph = step_graph(system, rows)
    return sum(graph.rows.sizes[: graph.blocks]) + graph.names.index(name)


@pytest.mark.parametrize(
    ("arm", "coefficient", "factor", "place"),
    [
        ("diffusion", "B", 1.01, "step 0 of 4"),
        ("diffusion", "C", 1.05, "step 1 of 4"),
        ("shortcut", "A", 1.01, "step 0 of 4"),
        ("shortcut", "S", 1.001, "step 0 of 4"),
        ("shortcut", "first", 1.01, f"step 0 of 4, guidance {GUIDANCE}, prior weight 0.9"),
    ],
)
def test_parity_notices_a_wrong_coefficient(request, arm, coefficient, factor, place):
    system, rows, graphs = request.getfixturevalue("made" if arm == "diffusion" else "made_shortcut")
    unet = spoil(graphs["unet"], "rows.table", factor, column_of(system, rows, coefficient))
    with pytest.raises(ParityFailed, match=rf"unet.*{place}.*differs"):
        check_parity(system, rows, {**graphs, "unet": unet})


def test_parity_notices_another_step_size(made_shortcut):
    """What the residual blocks add for the step: here that of the row before, where only the level differs."""
    system, rows, graphs = made_shortcut
    blocks = column_of(system, rows, "P")  # the coefficients come after the constants of the blocks

    def shift(table):
        table[:, :blocks] = np.roll(table[:, :blocks], 1, axis=0)

    unet = changed(graphs["unet"], "rows.table", shift)
    with pytest.raises(ParityFailed, match=r"unet.*differs"):
        check_parity(system, rows, {**graphs, "unet": unet})


@pytest.mark.parametrize(
    ("stage", "constant", "factor", "place"),
    [
        ("unet", "offset", -1, "step 0 of 4"),
        ("encoder", "matrices.groups.0.scale", 1.01, "seed 0"),
        ("decoder", "bias", 0.9, "seed 0"),
    ],
)
def test_parity_notices_a_wrong_constant(made, stage, constant, factor, place):
    system, rows, graphs = made
    with pytest.raises(ParityFailed, match=rf"{stage}.*{place}.*differs"):
        check_parity(system, rows, {**graphs, stage: spoil(graphs[stage], constant, factor)})


def test_parity_notices_a_wrong_condition(made, monkeypatch):
    """A mistake in the wrapper that computes the matrices is in the encoder's own reference; the steps show it."""
    system, rows, graphs = made
    scale = "matrices.groups.0.scale"
    spoilt = {**graphs, "encoder": spoil(graphs["encoder"], scale, 1.05)}
    wrapper = parity.EncoderGraph

    def mistaken(system):
        made = wrapper(system)
        made.matrices.groups[0].scale *= 1.05
        return made

    monkeypatch.setattr(parity, "EncoderGraph", mistaken)
    with pytest.raises(ParityFailed, match=r"unet.*differs"):
        check_parity(system, rows, spoilt)


def test_parity_covers_both_ends_and_every_table():
    system = toy_system(arm="shortcut")
    rows = toy_rows(system, (1, 2, 4, 8))
    options = dataclasses.replace(OPTIONS, store="float32")
    graphs = pipeline._export_graphs(system, rows, toy_tensors(system, rows), options)
    session = parity._session("encoder", graphs["encoder"])
    with torch.no_grad():
        labels = [case.label for case in parity._step_cases(system, rows, session)]
    for n in rows.tables:
        for weight in ("0", "0.9"):
            assert any(f"step 0 of {n}, guidance {GUIDANCE}, prior weight {weight}" in f"{label} " for label in labels)
        assert any(f"step {n - 1} of {n}," in label for label in labels)
    assert check_parity(system, rows, graphs).chain_steps == (1, 2, 4, 8)


@pytest.mark.parametrize("mode", ["subtract", "none", "interpolate"])
def test_parity_notices_another_prior_mode(made, mode):
    _, rows, graphs = made
    with pytest.raises(ParityFailed, match=r"unet: case seed 0, step 0"):
        check_parity(toy_system(mode=mode), rows, graphs)


def test_small_differences_that_add_up_fail_the_chain(tmp_path, monkeypatch):
    """Each graph is within its limit; a decoder of high contrast makes the sum over the steps visible."""

    class Drifting(DiffusionStep):
        def forward(self, *inputs):
            latent, history = super().forward(*inputs)
            return latent + 7e-5, history

    system = toy_system()
    with torch.no_grad():
        system.face_decoder.layers[3].weight *= 3000
    monkeypatch.setattr(pipeline, "step_graph", Drifting)
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
