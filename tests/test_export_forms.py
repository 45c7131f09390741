"""One graph or the stages: measured in turn, written down, and told."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import DIFFUSION, SHORTCUT, write_tiny_bundle

from export import forms, trial
from export.forms import Forms, OneGraph, forms_key, record_forms
from export.trial import draw, work
from runtime.backends import Settings
from runtime.backends.ort import OrtSession
from runtime.bundle import Bundle, Manifest, read_bundle
from runtime.cache import Cache
from runtime.engines import RECORDS
from runtime.errors import BackendFailed
from runtime.executor import StepwiseExecutor
from runtime.pipeline import shipped_bundle

ONE = Settings("cpu", 1)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cache:
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    return Cache.default()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT))


def recorded(cache: Cache, manifest: Manifest, settings: Settings) -> Forms | None:
    """What was written down, for whoever looks."""
    data = cache.read(RECORDS, forms_key(manifest, settings))
    return None if data is None else Forms(**json.loads(data)["milliseconds"])


@pytest.mark.parametrize(
    ("stages", "one_graph", "said"), [(20.0, 19.5, "the stages are taken"), (20.0, 15.0, "please report it")]
)
def test_both_forms_are_recorded(
    stages: float, one_graph: float, said: str, *, bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "medians", lambda *_: {"stages": stages, "one graph": one_graph})
    told: list[str] = []
    record_forms(bundle, OrtSession, ONE, told.append)
    found = recorded(cache, bundle.manifest, ONE)
    assert found is not None
    assert (found.stages, found.one_graph) == (stages, one_graph)
    assert said in told[0]
    assert recorded(cache, bundle.manifest, Settings("cpu", 2)) is None


def test_the_gain_asked_for() -> None:
    assert Forms(100.0, 95.0).one_graph_wins
    assert not Forms(100.0, 95.1).one_graph_wins


@pytest.mark.parametrize("folder", ["shipped", SHORTCUT, DIFFUSION], ids=["shipped", "shortcut", "diffusion"])
def test_one_graph_draws_what_the_stages_draw(folder: Any, tmp_path: Path) -> None:
    bundle = read_bundle(shipped_bundle() if folder == "shipped" else write_tiny_bundle(tmp_path / "t", arm=folder))
    task = work(bundle, bundle.manifest.default_steps)
    one, stages = OneGraph(bundle, OrtSession, ONE), StepwiseExecutor(bundle, OrtSession, ONE)
    difference = draw(one, task)[0].astype(int) - draw(stages, task)[0]
    assert np.abs(difference).max() <= 1
    with pytest.raises(BackendFailed):
        one.encode(task.voices)
    one.close()
    stages.close()


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_measures_them_too(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import openvino

    monkeypatch.setattr(trial, "RUNS", 5)
    monkeypatch.setattr(trial, "PATIENCE", 0.0)
    openvino.prepare(bundle, lambda _: None)
    threads = max(openvino.thread_counts())
    found = [recorded(cache, bundle.manifest, Settings("openvino", threads, one)) for one in ("bf16", "fp32")]
    assert any(found)


def test_without_onnx(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "export.derive", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    told: list[str] = []
    record_forms(bundle, OrtSession, ONE, told.append)
    assert "package onnx is not here" in told[0]
    assert recorded(cache, bundle.manifest, ONE) is None


def test_a_bundle_whose_graphs_cannot_be_joined(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise BackendFailed("no such graph")

    monkeypatch.setattr(forms, "OneGraph", broken)
    told: list[str] = []
    record_forms(bundle, OrtSession, ONE, told.append)
    assert "no such graph" in told[0]
