"""What the tests of OpenVINO share: where they run, and what is seen of the package."""

from __future__ import annotations

import importlib.util

import pytest

from runtime.backends import openvino
from runtime.bench import synthetic_speech

VOICE = (synthetic_speech(), 16000)
here = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """A package is not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else real(name, *a))


def note_compiling(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is compiled from now on, rather than read."""
    seen: list[str] = []
    real = openvino.compile_graph
    monkeypatch.setattr(
        openvino, "compile_graph", lambda data, settings, what: (seen.append(what), real(data, settings, what))[1]
    )
    return seen
