"""The speech gate: what passes and what does not, in pieces of any size; and silero's model as the other detector."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import runtime
from runtime.bench import synthetic_speech
from runtime.errors import BackendFailed, BackendMissing, InvalidArgument
from runtime.gate import PIECE, SILERO_PIECE, Detector, Energy, Gate, Silero, detector

RATE = 16000
FOLDER = os.environ.get("S2F_SPEECH", "")
FILES = sorted(Path(FOLDER).glob("*.flac"))[:10] if FOLDER else []
MODEL = os.environ.get("S2F_SILERO", "")
EXAMPLES = Path(__file__).parent.parent / "examples"

Sound = npt.NDArray[Any]


def passed(sound: Sound, judge: Detector | None = None) -> Sound:
    """What the gate lets through of a whole sound."""
    gate = Gate(judge or Energy())
    return np.concatenate([np.zeros(0, np.float32), *gate.take(sound.astype(np.float32)), gate.rest()])


def share(sound: Sound) -> float:
    return float(passed(sound).size / sound.size)


def noise(seconds: float, slope: float = 0.0, level: float = 0.03) -> Sound:
    """Noise whose power falls with frequency to the power of 2 · slope: 0 white, 0.5 pink, 1 brown."""
    spectrum = np.fft.rfft(np.random.default_rng(5).standard_normal(round(seconds * RATE)))
    spectrum[1:] /= np.arange(1, spectrum.size) ** slope
    spectrum[0] = 0
    signal = np.fft.irfft(spectrum)
    return np.asarray(level * signal / signal.std())


def hum(seconds: float) -> Sound:
    t = np.arange(round(seconds * RATE)) / RATE
    return np.asarray(0.03 * sum(np.sin(2 * np.pi * 50 * k * t) / k for k in range(1, 8)))


def typing(seconds: float) -> Sound:
    rng, keys = np.random.default_rng(6), np.zeros(round(seconds * RATE))
    for start in rng.integers(0, keys.size - 800, round(5 * seconds)):
        keys[start : start + 800] += rng.standard_normal(800) * np.exp(-np.arange(800) / 120)
    return np.asarray(0.3 * keys / np.abs(keys).max())


def speech(seconds: float = 6.0) -> Sound:
    return np.asarray(synthetic_speech(seconds=seconds), np.float64)


class Script:
    """A detector that hears a voice in the pieces of a list."""

    piece, needed, among = 4, 2, 3

    def __init__(self, voices: list[int]) -> None:
        self.answers = itertools.chain(voices, itertools.repeat(0))

    def hears(self, piece: Any) -> bool:
        assert piece.shape == (4,)
        return bool(next(self.answers))


def test_the_gate_opens_early_closes_late_and_loses_nothing_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.gate.HANGOVER_SECONDS", 3 * 4 / RATE)
    monkeypatch.setattr("runtime.gate.PREROLL_SECONDS", 5 * 4 / RATE)
    sound = np.arange(4 * 30, dtype=np.float32)
    #                  6: two of the last three      one is not enough
    gate = Gate(Script([0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1]))
    parts = [(part, gate.position) for part in gate.take(sound)]
    pieces = [int(i) for i in np.concatenate([part for part, _ in parts])[::4] // 4]
    # Open with the five up to 6; the voice in 9 keeps it open for three more; 16 to 20 come with the one at 20.
    assert pieces == [*range(2, 12), *range(16, 23)]
    assert all(position == part[-1] + 1 for part, position in parts)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=30), st.sampled_from(["energy", "script"]))
def test_any_cut_gives_the_same(sizes: list[int], kind: str) -> None:
    sound = np.concatenate([noise(0.5), speech(2), noise(1)]).astype(np.float32)
    makers = {"energy": Energy, "script": lambda: Script([0, 1, 1, 0] * 200)}
    gate = Gate(makers[kind]())  # type: ignore[operator]
    cuts = np.cumsum(sizes)
    parts = [part for piece in np.split(sound, cuts[cuts < sound.size]) for part in gate.take(piece)]
    together = np.concatenate([np.zeros(0, np.float32), *parts, gate.rest()])
    np.testing.assert_array_equal(together, passed(sound, makers[kind]()))  # type: ignore[operator]
    assert gate.position == sound.size


def test_speech_passes_silence_does_not() -> None:
    assert share(speech()) > 0.95
    assert share(np.zeros(3 * RATE)) == 0
    assert share(noise(3, level=1e-4)) == 0
    found = passed(np.concatenate([np.zeros(RATE), speech(), np.zeros(2 * RATE)])).size / RATE
    assert 5.7 < found < 6.4  # up to 0.2 s on either side


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_steady_noise_never_passes_and_speech_in_it_does(slope: float) -> None:
    assert share(noise(20, slope)) == 0
    around = np.concatenate([np.zeros(RATE), speech(), np.zeros(2 * RATE)])
    level = speech().std() * 10 ** (-10 / 20)
    found = passed(around + noise(9, slope, level)).size / RATE
    assert 5.0 < found < 6.5


def test_noise_that_sets_in_does_not_pass() -> None:
    assert share(np.concatenate([noise(3, level=0.001), noise(5, level=0.1), noise(3, level=0.01)])) == 0
    assert share(np.concatenate([np.zeros(RATE), noise(5, 0.5, 0.1)])) == 0


def test_a_hum_passes_for_a_moment_only() -> None:
    assert passed(np.concatenate([noise(2, level=0.001), hum(20)])).size < 2 * RATE


def test_clatter_does_not_pass() -> None:
    assert share(typing(20)) < 0.02


@pytest.mark.parametrize("change", ["offset", "clipped", "quiet", "loud", "as int16"])
def test_levels_do_not_matter(change: str) -> None:
    sound = np.concatenate([noise(1, level=3e-4), speech(), noise(1, level=3e-4)])
    changed = {
        "offset": sound + 0.5,
        "clipped": np.clip(sound * 30, -1, 1),
        "quiet": sound * 0.01,
        "loud": sound * 3,
        "as int16": sound * 32767,
    }[change]
    found = passed(changed).size / passed(sound).size
    assert 0.85 < found < 1.15


def test_a_voice_at_once() -> None:
    """Nobody has heard the noise floor yet; the pre-roll brings back what it took to be sure."""
    sound = speech(2)[2000:]
    first = passed(sound)[:PIECE]
    at = int(np.flatnonzero(np.isclose(sound, first[0]))[0])
    assert at < 0.1 * RATE


def test_example_clips() -> None:
    for name in ("man.wav", "woman.wav"):
        sound, rate = soundfile.read(EXAMPLES / name)
        assert share(soxr.resample(sound, rate, RATE)) > 0.8


@pytest.mark.skipif(not FILES, reason="set the variable S2F_SPEECH to a folder of FLAC recordings")
def test_real_recordings() -> None:
    kept = []
    for path in FILES:
        sound, _ = soundfile.read(path)
        kept.append(share(sound))
        assert passed(np.concatenate([sound, np.zeros(3 * RATE)])).size <= sound.size + 0.2 * RATE
    assert 0.75 < np.mean(kept) < 0.95
    assert min(kept) > 0.5


def vad_model(path: Path, *, answer: str = "ReduceMax", inputs: tuple[str, ...] = ("input", "state", "sr")) -> Path:
    """A model with silero's tensors that hears a voice where a sample is above 0.5."""
    kinds = {
        "input": (TensorProto.FLOAT, ["batch", "sequence"]),
        "state": (TensorProto.FLOAT, [2, "batch", 128]),
        "sr": (TensorProto.INT64, []),
    }
    nodes = [
        helper.make_node(answer, ["input"], ["output"], **({"axes": [1]} if answer.startswith("Reduce") else {})),
        helper.make_node("Identity", ["state"], ["stateN"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("output", "stateN")]
    given = [helper.make_tensor_value_info(name, *kinds[name]) for name in inputs]
    graph = helper.make_graph(nodes, "vad", given, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("inputs", [("input", "state", "sr"), ("input", "state")])
def test_a_model_decides(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    judge = detector(vad_model(tmp_path / "vad.onnx", inputs=inputs))
    sound = np.zeros(20 * SILERO_PIECE)
    sound[10 * SILERO_PIECE] = 0.6
    found = passed(sound, judge)
    assert found.size == (6 + 5) * SILERO_PIECE  # the pre-roll with the piece itself, then the hangover
    assert found[5 * SILERO_PIECE] == np.float32(0.6)


def test_a_model_that_answers_otherwise(tmp_path: Path) -> None:
    judge = Silero(vad_model(tmp_path / "vad.onnx", answer="Abs"))
    with pytest.raises(BackendFailed, match="another shape"):
        judge.hears(np.zeros(SILERO_PIECE, np.float32))


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "large.onnx").touch()
    os.truncate(tmp_path / "large.onnx", 65 << 20)
    bundled = Path(runtime.__file__).parent / "bundles" / "demo" / "decoder.onnx"
    for path in (tmp_path / "none.onnx", tmp_path, tmp_path / "large.onnx", tmp_path / "text.onnx", bundled):
        with pytest.raises(InvalidArgument, match=r"vad: .*silero_vad\.onnx"):
            detector(path)
    for other in (None, 5, True, "", "silero", "a\0b"):
        with pytest.raises(InvalidArgument, match="vad"):
            detector(other)  # type: ignore[arg-type]


def test_a_model_with_weights_elsewhere_is_refused(tmp_path: Path) -> None:
    path = vad_model(tmp_path / "vad.onnx")
    model = onnx.load(path)
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidArgument, match="weights inside"):
        Silero(path)


def test_a_model_without_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = vad_model(tmp_path / "vad.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with pytest.raises(BackendMissing, match="pip install"):
        Silero(path)


@pytest.mark.skipif(not MODEL, reason="set the variable S2F_SILERO to silero_vad.onnx of the package silero-vad")
def test_silero_itself() -> None:
    t = np.arange(5 * RATE) / RATE
    beeps = 0.3 * np.sin(2 * np.pi * 440 * t) * (t % 1 < 0.4)
    assert passed(beeps).size > RATE
    for sound in (beeps, noise(5), hum(5), typing(5), np.zeros(5 * RATE)):
        assert passed(sound, Silero(MODEL)).size == 0
    for path in FILES:
        sound, _ = soundfile.read(path)
        assert 0.75 < passed(sound).size / passed(sound, Silero(MODEL)).size < 1.1
