"""OpenVINO: what `s2f prepare` measures and keeps, when "auto" takes it, and what the commands say of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openvino_factory import VOICE, here, hide, note_compiling
from tiny_bundle import DIFFUSION, SHORTCUT, add_variant, write_tiny_bundle

import runtime
from export import openvino as prepares
from export import trial
from runtime.backends import Settings, openvino, select
from runtime.bundle import Bundle, read_bundle
from runtime.cache import Cache
from runtime.cli import main
from runtime.engines import RECORDS
from runtime.errors import OutputUnwritable
from runtime.standing import ENOUGH_DB, Standing, read_standing, standing_key, write_standing

NOTHING: Any = lambda _: None  # noqa: E731


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cache:
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    return Cache.default()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms have tests of their own, and would be told here in between; a quiet machine is not waited for."""
    monkeypatch.setattr(prepares, "record_forms", lambda *_: None)
    monkeypatch.setattr(trial, "PATIENCE", 0.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT))


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return note_compiling(monkeypatch)


def a_standing(**changes: Any) -> Standing:
    found = Standing("fp32", 60.0, "fp32", {1: (10.0, 20.0), 2: (5.0, 9.0)}, openvino.place_here())
    return dataclasses.replace(found, **changes)


def prepared(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, *seconds: float) -> list[str]:
    """Prepare where ONNX Runtime, bf16 and f32 take these seconds."""
    told: list[str] = []
    monkeypatch.setattr("runtime.variants.cpu_flags", lambda: ["avx512_vnni", "avx512_bf16"])
    take = iter([*seconds] * len(prepares.thread_counts()))
    monkeypatch.setattr(prepares, "medians", lambda arms, *_: {name: next(take) * 1e3 for name in arms})
    prepares.prepare(bundle, told.append)
    return told


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """PSNR by precision, as the test likes it."""
    found = {"bf16": 50.0, "fp32": 90.0}
    monkeypatch.setattr(prepares, "likeness", lambda *_: dict(found))
    return found


@here
def test_the_faster_is_taken_from_then_on(
    bundle: Bundle, alike: dict[str, float], monkeypatch: pytest.MonkeyPatch, compiling: list[str]
) -> None:
    assert select("auto", bundle.manifest) == "cpu"
    told = prepared(bundle, monkeypatch, 0.02, 0.01, 0.015)
    assert "ONNX Runtime 20.0 ms, bf16 10.0 ms, fp32 15.0 ms" in told[0]
    assert "50.0 dB in bf16, 90.0 dB in fp32" in told[-3]
    assert told[-2].endswith("PSNR in bf16 50.0 dB to ONNX Runtime in fp32: auto takes openvino")
    assert told[-1].startswith("ready: compiled graphs in bf16")
    assert select("auto", bundle.manifest) == "openvino"
    compiling.clear()
    with runtime.load(bundle.path) as pipeline:
        assert (pipeline.device, pipeline.prepared) == ("openvino", True)
        pipeline.generate(VOICE)
    assert set(compiling) <= {"a test graph"}


@here
@pytest.mark.parametrize(
    ("seconds", "quality", "precision", "taken"),
    [
        ((0.02, 0.01, 0.015), {"bf16": 39.0}, "fp32", True),  # bf16 draws something else
        ((0.02, 0.01, 0.021), {"bf16": 39.0}, "fp32", False),
        ((0.02, 0.01, 0.005), {}, "fp32", True),
        ((0.02, 0.0195, 0.03), {}, "bf16", False),  # within what a machine wavers
        ((0.02, 0.01, 0.01), {"bf16": 20.0, "fp32": 30.0}, "fp32", False),
    ],
)
def test_what_is_chosen(
    seconds: tuple[float, ...],
    quality: dict[str, float],
    precision: str,
    taken: bool,
    *,
    bundle: Bundle,
    alike: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alike.update(quality)
    prepared(bundle, monkeypatch, *seconds)
    found = read_standing(Cache.default(), bundle.manifest)
    assert found is not None
    assert (found.precision, found.psnr, found.wins) == (precision, alike[precision], taken)
    assert openvino.precision_for(bundle.manifest) == precision
    assert select("auto", bundle.manifest) == ("openvino" if taken else "cpu")


@here
def test_faster_with_all_cores_alone_is_not_enough(bundle: Bundle, cache: Cache) -> None:
    write_standing(cache, bundle.manifest, a_standing(milliseconds={1: (20.0, 19.0), 2: (5.0, 9.0)}))
    assert select("auto", bundle.manifest) == "cpu"
    write_standing(cache, bundle.manifest, a_standing())
    assert select("auto", bundle.manifest) == "openvino"


@pytest.fixture
def eight(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """With a variant, on a processor that is made for it."""
    monkeypatch.setattr("runtime.variants.cpu_flags", lambda: ["avx512_vnni", "avx512_bf16"])
    return read_bundle(add_variant(bundle.path))


@here
@pytest.mark.parametrize(("quality", "precision"), [(31.0, "int8"), (29.0, "bf16")])
def test_eight_bits_are_measured_where_auto_may_take_them(
    quality: float,
    precision: str,
    *,
    eight: Bundle,
    alike: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    compiling: list[str],
) -> None:
    """They are beside ONNX Runtime in eight bits, and need not be as alike as others."""
    alike["int8"] = quality
    told = prepared(eight, monkeypatch, 0.03, 0.02, 0.025, 0.01)
    assert "bf16 20.0 ms, fp32 25.0 ms, int8 10.0 ms; ONNX Runtime in int8" in told[0]
    found = read_standing(Cache.default(), eight.manifest)
    assert found is not None
    assert (found.precision, found.peer, found.psnr, found.wins) == (precision, "int8", alike[precision], True)
    compiling.clear()
    with runtime.load(eight.path) as pipeline:
        assert (pipeline.device, pipeline.precision, pipeline.prepared) == ("openvino", precision, True)
    assert set(compiling) <= {"a test graph"}


@here
def test_a_record_is_of_a_bundle_with_its_variant(bundle: Bundle, cache: Cache) -> None:
    write_standing(cache, bundle.manifest, a_standing())
    eight = read_bundle(add_variant(bundle.path)).manifest
    assert read_standing(cache, eight) is None
    write_standing(cache, eight, a_standing(precision="int8", psnr=31.0))
    assert read_standing(cache, read_bundle(add_variant(bundle.path, gate="missed")).manifest) is None


@here
def test_the_yardstick_is_float32(eight: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str, str | None]] = []
    real = prepares.StepwiseExecutor

    def noted(bundle: Bundle, opener: Any, settings: Settings) -> Any:
        seen.append((settings.device, settings.precision, bundle.variant))
        return real(bundle, opener, settings)

    monkeypatch.setattr(prepares, "StepwiseExecutor", noted)
    assert min(prepares.likeness(eight, ["fp32", "int8"], 1).values()) > ENOUGH_DB
    assert seen == [("cpu", "fp32", None), ("openvino", "fp32", None), ("openvino", "int8", "int8-x86")]


@here
def test_the_real_measurement(bundle: Bundle, cache: Cache) -> None:
    told: list[str] = []
    prepares.prepare(bundle, told.append)
    found = read_standing(cache, bundle.manifest)
    assert found is not None
    assert found.psnr >= ENOUGH_DB
    assert all(value > 0 for pair in found.milliseconds.values() for value in pair)
    assert select("auto", bundle.manifest) == ("openvino" if found.wins else "cpu")


def stale(cache: Cache, bundle: Bundle) -> str:
    place = {**openvino.place_here(), "OpenVINO": "2020.1"}
    write_standing(cache, bundle.manifest, a_standing(place=place))
    return "OpenVINO was 2020.1, is "


def writable(cache: Cache, bundle: Bundle) -> str:
    write_standing(cache, bundle.manifest, a_standing())
    cache.path(RECORDS, standing_key(bundle.manifest)).chmod(0o666)
    return "may be written by others"


def unreadable(cache: Cache, bundle: Bundle) -> str:
    cache.write(RECORDS, standing_key(bundle.manifest), json.dumps({"milliseconds": [1]}).encode())
    return "not readable"


@here
@pytest.mark.parametrize("spoil", [stale, writable, unreadable])
def test_a_record_that_does_not_hold_is_passed_over_with_the_reason(
    spoil: Any, bundle: Bundle, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    said = spoil(cache, bundle)
    with caplog.at_level(logging.WARNING, "runtime"):
        assert select("auto", bundle.manifest) == "cpu"
    assert "openvino is passed over" in caplog.text
    assert said in caplog.text
    assert "s2f prepare BUNDLE --device openvino" in caplog.text
    assert said in openvino.standing_text(bundle.manifest)
    with runtime.load(bundle.path, device="openvino") as pipeline:  # asked for, it works all the same
        assert pipeline.generate(VOICE).image.shape == (32, 32, 3)


@here
def test_openvino_was_removed_since(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_standing(cache, bundle.manifest, a_standing())
    hide(monkeypatch, "openvino")
    with caplog.at_level(logging.WARNING, "runtime"):
        assert select("auto", bundle.manifest) == "cpu"
    assert "openvino is passed over: OpenVINO is not installed" in caplog.text


@here
def test_a_record_of_another_processor_or_bundle_is_none(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_standing(cache, bundle.manifest, a_standing())
    other = read_bundle(write_tiny_bundle(tmp_path / "other", arm=DIFFUSION))
    assert read_standing(cache, other.manifest) is None
    monkeypatch.setattr("runtime.standing.cpu_model", lambda: "another")
    assert read_standing(cache, bundle.manifest) is None


@here
def test_without_onnx_runtime_nothing_is_compared(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "onnxruntime")
    told: list[str] = []
    prepares.prepare(bundle, told.append)
    assert "not measured against ONNX Runtime" in told[0]
    assert told[-1].startswith("ready: compiled graphs")
    assert read_standing(cache, bundle.manifest) is None
    with runtime.load(bundle.path, device="openvino") as pipeline:
        pipeline.generate(VOICE)


@here
def test_a_cache_that_cannot_be_written(bundle: Bundle, cache: Cache) -> None:
    cache.folder.write_text("a file")
    with pytest.raises(OutputUnwritable):
        prepares.prepare(bundle, NOTHING)


@pytest.fixture
def shipped(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    from runtime import doctor

    monkeypatch.setattr(doctor, "shipped_bundle", lambda: bundle.path)
    return bundle


@here
def test_the_commands(shipped: Bundle, cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(shipped.path)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "openvino openvino: works\n           not measured against ONNX Runtime here" in text
    assert main(["prepare", folder, "--device", "openvino"]) == 0
    assert "ready: compiled graphs" in capsys.readouterr().out
    write_standing(cache, shipped.manifest, a_standing())
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "openvino openvino: works; the one --device auto takes" in text
    assert "fp32, 10.0 ms against 20.0 ms with 1 thread, 5.0 ms against 9.0 ms with 2 threads of ONNX Run" in text
    assert "time in fp32; PSNR in fp32 60.0 dB to ONNX Runtime in fp32: faster" in text
    assert main(["info", folder]) == 0
    assert "openvino   fp32, 10.0 ms against 20.0 ms" in capsys.readouterr().out
    assert main(["verify", folder]) == 0
    text = capsys.readouterr().out
    assert "graphs open on openvino" in text
    assert "PSNR to the CPU in fp32 at least" in text
    assert main(["bench", folder, "--device", "openvino", "--runs", "2", "--warmup", "0"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^device +openvino", text, re.MULTILINE)
    assert ", openvino 20" in text


def test_it_is_registered() -> None:
    from importlib import metadata

    found = {point.name: point.value for point in metadata.entry_points(group="s2f.prepare")}
    assert found["openvino"] == "export.openvino:prepare"
