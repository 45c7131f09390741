"""OpenVINO: the real one behind the session, and what it has compiled."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from openvino_factory import VOICE, here, hide, note_compiling
from tiny_bundle import DIFFUSION, SHORTCUT, Arm, write_tiny_bundle

import runtime
from runtime.backends import Settings, available, openvino, select
from runtime.bundle import Bundle, TensorSpec, read_bundle
from runtime.cache import Cache
from runtime.engines import ENGINES
from runtime.errors import BackendFailed, BackendMissing, BundleInvalid, Closed, DeviceOutOfMemory
from runtime.pipeline import Pipeline, shipped_bundle
from runtime.portrait import psnr
from runtime.standing import ENOUGH_DB

F32 = Settings("openvino", 1, "fp32")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cache:
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    return Cache.default()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT))


def session(bundle: Bundle, stage: str, settings: Settings = F32) -> openvino.OpenVinoSession:
    spec = bundle.manifest.stages[stage]
    return openvino.OpenVinoSession(stage, bundle.files[stage], spec.inputs, spec.outputs, settings)


def unet_feeds(batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(batch)
    return {
        "latent": rng.standard_normal((batch, 4, 4, 4)).astype(np.float32),
        "condition": rng.standard_normal((batch, 2, 4)).astype(np.float32),
        "step": np.array([1], np.int64),
        "prior_weight": np.array([0.01], np.float32),
    }


@here
@pytest.mark.parametrize("arm", [SHORTCUT, DIFFUSION], ids=["shortcut", "diffusion"])
def test_it_draws_what_onnx_runtime_draws(arm: Arm, tmp_path: Path) -> None:
    bundle = read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=arm))
    with Pipeline(bundle, Settings("openvino", 2)) as ours, Pipeline(bundle, Settings("cpu", 2)) as theirs:
        for steps in bundle.manifest.step_tables:
            assert psnr(ours.generate(VOICE, steps=steps).image, theirs.generate(VOICE, steps=steps).image) > ENOUGH_DB


@here
@pytest.mark.parametrize(("precision", "least"), [("bf16", ENOUGH_DB), ("fp32", 70.0)])
def test_the_shipped_bundle(precision: str, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if precision not in openvino.precisions_here():
        pytest.skip("this processor does not compute in bf16")
    monkeypatch.setattr(openvino, "precision_here", lambda: precision)
    bundle = read_bundle(shipped_bundle())
    with Pipeline(bundle, Settings("openvino", 1)) as ours, Pipeline(bundle, Settings("cpu", 1)) as theirs:
        pairs = [(ours.generate(VOICE, seed=seed).image, theirs.generate(VOICE, seed=seed).image) for seed in range(3)]
        assert min(psnr(*pair) for pair in pairs) >= least


@here
def test_the_same_seed_gives_the_same_bytes(bundle: Bundle) -> None:
    drawn = []
    for _ in range(2):
        with runtime.load(bundle.path, device="openvino", threads=2) as pipeline:
            drawn += [pipeline.generate(VOICE, seed=5).image.tobytes() for _ in range(2)]
    assert len(set(drawn)) == 1


@here
def test_a_batch_is_its_items(bundle: Bundle) -> None:
    feeds, unet = unet_feeds(3), session(bundle, "unet")
    together = unet.run(feeds)["latent_next"]
    for i in range(3):
        one = {name: value[i : i + 1] if len(value) == 3 else value for name, value in feeds.items()}
        np.testing.assert_array_equal(unet.run(one)["latent_next"], together[i : i + 1])


@here
def test_what_was_returned_is_not_written_over(bundle: Bundle) -> None:
    unet = session(bundle, "unet")
    first = unet.run(unet_feeds(1))["latent_next"]
    kept = np.array(first)
    unet.run({**unet_feeds(1), "step": np.array([2], np.int64)})
    np.testing.assert_array_equal(first, kept)


@here
def test_nan_is_found(bundle: Bundle) -> None:
    feeds = unet_feeds(1)
    feeds["latent"][0, 0, 0, 0] = np.nan
    with pytest.raises(BackendFailed, match="latent_next holds NaN"):
        session(bundle, "unet").run(feeds)


@here
def test_a_closed_session(bundle: Bundle) -> None:
    unet = session(bundle, "unet")
    unet.close()
    unet.close()
    with pytest.raises(Closed):
        unet.run(unet_feeds(1))


@here
@pytest.mark.parametrize("data", [b"not a model", b"", None], ids=["text", "empty", "half"])
def test_a_graph_that_is_none(data: bytes | None, bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    data = bundle.files["unet"][:200] if data is None else data
    with pytest.raises(BackendFailed, match=r"cannot open the unet graph: (?!Exception from)"):
        openvino.OpenVinoSession("unet", data, (), (), F32)
    assert capfd.readouterr() == ("", "")


@here
@pytest.mark.parametrize("change", [{"dtype": "int64"}, {"name": "latents"}, {"shape": ("batch", 4, 4, 5)}])
def test_a_graph_unlike_its_manifest(change: dict[str, Any], bundle: Bundle) -> None:
    spec = bundle.manifest.stages["decoder"]
    tensor: TensorSpec = dataclasses.replace(spec.inputs[0], **change)
    with pytest.raises(BundleInvalid, match="inputs of the decoder"):
        openvino.OpenVinoSession("decoder", bundle.files["decoder"], (tensor,), spec.outputs, F32)


@here
def test_settings_are_explicit(bundle: Bundle) -> None:
    compiled = session(bundle, "unet", Settings("openvino", 2, "fp32"))._compiled
    for name, value in {"INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}.items():
        assert compiled.get_property(name) == value
    assert "LATENCY" in str(compiled.get_property("PERFORMANCE_HINT"))
    assert "float32" in str(compiled.get_property("INFERENCE_PRECISION_HINT"))


@pytest.mark.parametrize(
    ("flags", "precisions"),
    [
        (["avx2", "fma"], ("fp32",)),
        (["avx512f", "avx512_vnni"], ("fp32",)),
        (["avx512f", "avx512_bf16"], ("bf16", "fp32")),
        (["amx_tile", "amx_bf16"], ("bf16", "fp32")),
        ([], ("fp32",)),
    ],
)
def test_precision_is_what_the_processor_computes_in(
    flags: list[str], precisions: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.variants.cpu_flags", lambda: flags)
    assert openvino.precisions_here() == precisions


@here
def test_idle_threads_sleep_and_nothing_is_printed(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    """Two milliseconds after a call are OpenVINO's own; after them nothing."""
    used = []
    with runtime.load(bundle.path, device="openvino", threads=2) as pipeline:
        for _ in range(3):
            pipeline.generate(VOICE)
            time.sleep(0.05)
            begin = time.process_time()
            time.sleep(0.1)
            used.append(time.process_time() - begin)
    assert min(used) < 0.002
    assert capfd.readouterr() == ("", "")


def test_openvino_not_installed(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    hide(monkeypatch, "openvino")
    with pytest.raises(BackendMissing, match=r"OpenVINO is not installed.*s2f-edge\[openvino\]"):
        runtime.load(bundle.path, device="openvino")
    found = {device.name: device for device in available()}["openvino"]
    assert (found.usable, found.reason) == (False, "OpenVINO is not installed, the device 'openvino' needs it.")
    assert "s2f-edge[openvino]" in found.cure
    assert select("auto", bundle.manifest) != "openvino"


def test_a_damaged_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", ModuleType("openvino"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
    with pytest.raises(BackendMissing, match="damaged"):
        select("openvino")


def test_telemetry_is_kept_out_only_while_openvino_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, openvino.TELEMETRY, raising=False)
    with openvino._without_telemetry(), pytest.raises(ImportError):
        importlib.import_module(openvino.TELEMETRY)
    assert openvino.TELEMETRY not in sys.modules
    theirs = ModuleType(openvino.TELEMETRY)
    monkeypatch.setitem(sys.modules, openvino.TELEMETRY, theirs)
    with openvino._without_telemetry():
        assert sys.modules[openvino.TELEMETRY] is theirs
    assert sys.modules[openvino.TELEMETRY] is theirs


def test_a_lack_of_memory_is_told_apart() -> None:
    with pytest.raises(DeviceOutOfMemory, match="x: "), openvino.translated("x"):
        raise MemoryError("std::bad_alloc")
    with pytest.raises(BackendFailed, match=r"^x: Shape differs at last\.$"), openvino.translated("x"):
        raise RuntimeError(
            "Exception from src/core.cpp:1:\nException from src/plugin.cpp:2:\nShape differs\nat last\n\n"
        )


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return note_compiling(monkeypatch)


@here
def test_a_compiled_graph_is_read_again(bundle: Bundle, cache: Cache, compiling: list[str]) -> None:
    wanted = session(bundle, "unet").run(unet_feeds(2))["latent_next"]
    assert openvino.keep(bundle.files["unet"], F32, cache, "the unet graph") > 1000
    compiling.clear()
    again = session(bundle, "unet")
    assert compiling == []
    np.testing.assert_array_equal(again.run(unet_feeds(2))["latent_next"], wanted)


@here
@pytest.mark.parametrize("other", [Settings("openvino", 2, "fp32"), Settings("openvino", 1, "bf16")])
def test_one_compiled_otherwise_is_not(other: Settings, bundle: Bundle, cache: Cache, compiling: list[str]) -> None:
    if other.precision not in openvino.precisions_here():
        pytest.skip("this processor does not compute in bf16")
    openvino.keep(bundle.files["unet"], F32, cache, "the unet graph")
    compiling.clear()
    session(bundle, "unet", other)
    assert compiling == ["the unet graph"]


@here
@pytest.mark.parametrize("how", ["rights", "bytes", "content", "else"])
def test_one_that_is_not_to_be_trusted_is_compiled_again(
    how: str, bundle: Bundle, cache: Cache, compiling: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    openvino.keep(bundle.files["unet"], F32, cache, "the unet graph")
    key = openvino._key(bundle.manifest.stages["unet"].sha256, F32)
    path = cache.path(ENGINES, key)
    said = {"rights": "written by others", "bytes": "damaged", "content": "does not take", "else": "something else"}
    if how == "rights":
        path.chmod(0o666)
    elif how == "bytes":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    elif how == "content":
        cache.write(ENGINES, key, b"garbage")
    else:
        path.write_bytes(cache.write(ENGINES, {**key, "threads": 7}, b"garbage").read_bytes())
    compiling.clear()
    with caplog.at_level(logging.WARNING, "runtime"):
        session(bundle, "unet").run(unet_feeds(1))
    assert compiling == ["the unet graph"]
    assert said[how] in caplog.text
