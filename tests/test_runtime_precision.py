"""In which precision a device draws: what may be asked for, what "auto" takes, and which files are read for it."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
from bundle_factory import make_manifest, write_bundle
from tiny_bundle import add_variant, write_tiny_bundle

import runtime
from runtime import precision
from runtime.backends import Settings, settle
from runtime.bench import synthetic_speech
from runtime.bundle import Manifest, read_bundle, read_manifest, sha256_hex, verify_variants
from runtime.errors import BundleInvalid, BundleTampered, DeviceUnavailable, InvalidArgument
from runtime.pipeline import Pipeline, read_for, settings_for

VOICE = (synthetic_speech(), 16000)
VNNI = ["avx512_vnni", "avx512_bf16"]


def with_flags(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    monkeypatch.setattr("runtime.variants.cpu_flags", lambda: flags)


def with_gate(gate: str, family: str = "int8-x86") -> Manifest:
    manifest = make_manifest()
    return dataclasses.replace(
        manifest, variants={family: dataclasses.replace(manifest.variants["int8-x86"], gate=gate)}
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny")


@pytest.fixture
def eight(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a variant of the unet, where the processor is made for it."""
    with_flags(monkeypatch, VNNI)
    return add_variant(tiny)


@pytest.mark.parametrize("device", precision.SERVED)
@pytest.mark.parametrize("asked", ["auto", *precision.PRECISIONS[1:]])
def test_a_device_is_asked_for_what_it_serves(device: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_flags(monkeypatch, VNNI)
    manifest = with_gate("passed", "int8-tensorrt" if device == "tensorrt" else "int8-x86")
    if asked == "auto" or asked in precision.SERVED[device]:
        precision.check(device, asked, manifest)
    else:
        with pytest.raises(DeviceUnavailable, match=f"The device {device} draws in .*, not in {asked}"):
            precision.check(device, asked, manifest)


@pytest.mark.parametrize("asked", ["float32", "", "FP32", "int4"])
def test_what_is_no_precision(asked: str, tiny: Path) -> None:
    with pytest.raises(InvalidArgument, match="Choose one of auto, fp32, bf16, fp16, int8"):
        runtime.load(tiny, precision=asked)


def test_a_bundle_without_eight_bits(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_flags(monkeypatch, VNNI)
    with pytest.raises(BundleInvalid, match=r"has no graphs in eight bits for cpu.*s2f-calibrate"):
        runtime.load(tiny, device="cpu", precision="int8")


def test_eight_bits_of_another_device() -> None:
    with pytest.raises(BundleInvalid, match="no graphs in eight bits for tensorrt"):
        precision.check("tensorrt", "int8", with_gate("passed"))
    with pytest.raises(BundleInvalid, match="no graphs in eight bits for cpu"):
        precision.check("cpu", "int8", with_gate("passed", "int8-tensorrt"))


def test_eight_bits_on_a_processor_that_has_no_instructions_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with_flags(monkeypatch, ["avx2", "avx512f"])
    for device in ("cpu", "openvino"):
        with pytest.raises(DeviceUnavailable, match="VNNI"):
            precision.check(device, "int8", with_gate("passed"))
    precision.check("tensorrt", "int8", with_gate("passed", "int8-tensorrt"))  # the processor does not multiply there


@pytest.mark.parametrize("gate", ["missed", "unverified"])
def test_asked_for_a_variant_is_used_whatever_its_gate_says(
    gate: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_flags(monkeypatch, VNNI)
    with caplog.at_level(logging.WARNING, "runtime"):
        precision.check("cpu", "int8", with_gate("passed"))
        assert caplog.text == ""
        precision.check("cpu", "int8", with_gate(gate))
    assert f"its gate says {gate}" in caplog.text


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "amx_int8"])
def test_auto_takes_eight_bits_that_passed_where_the_processor_is_made_for_them(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_flags(monkeypatch, ["avx2", flag])
    assert settle("cpu", "auto", with_gate("passed")) == "int8"
    assert precision.offers_int8("openvino", with_gate("passed"))
    assert settle("cpu", "fp32", with_gate("passed")) == "fp32"
    for manifest in (with_gate("missed"), with_gate("unverified"), with_gate("passed", "int8-tensorrt")):
        assert settle("cpu", "auto", manifest) == "fp32"
    with_flags(monkeypatch, ["avx2"])
    assert settle("cpu", "auto", with_gate("passed")) == "fp32"


@pytest.mark.parametrize("device", precision.PREPARED)
def test_what_was_prepared_decides_on_a_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_flags(monkeypatch, VNNI)
    manifest = with_gate("passed", "int8-tensorrt")
    assert settle(device, "auto", manifest) == "auto"
    assert precision.variant_for(device, "int8") is None


def test_the_family_of_a_device() -> None:
    assert precision.variant_for("cpu", "int8") == "int8-x86"
    assert precision.variant_for("openvino", "int8") == "int8-x86"
    assert precision.variant_for("cpu", "fp32") is None


def test_which_files_are_read(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "dummy")
    own = read_for(folder, Settings("cpu", 1, "fp32"))
    (folder / "unet.onnx").unlink()
    (folder / "decoder.onnx").unlink()
    eight = read_for(folder, Settings("cpu", 1, "int8"))
    assert (own.variant, eight.variant) == (None, "int8-x86")
    assert eight.files["encoder"] == own.files["encoder"]  # the variant lacks it
    for stage in ("unet", "decoder"):
        assert eight.files[stage] == (folder / f"{stage}.int8.onnx").read_bytes() != own.files[stage]
    for one in (own, eight):
        assert [one.sha256_of(stage) for stage in one.files] == [sha256_hex(data) for data in one.files.values()]


def test_a_variant_that_was_tampered_with_is_refused_only_where_it_is_used(eight: Path) -> None:
    path = eight / "unet.int8-x86.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with runtime.load(eight, device="cpu", precision="fp32") as pipeline:
        pipeline.generate(VOICE)
    for asked in ("int8", "auto"):
        with pytest.raises(BundleTampered, match=r"unet\.int8-x86\.onnx"):
            runtime.load(eight, device="cpu", precision=asked)
    with pytest.raises(BundleTampered, match=r"unet\.int8-x86\.onnx"):
        verify_variants(read_bundle(eight))


def test_a_pipeline_tells_in_what_it_draws(eight: Path) -> None:
    for asked, drawn, variant in (("auto", "int8", "int8-x86"), ("int8", "int8", "int8-x86"), ("fp32", "fp32", None)):
        with runtime.load(eight, device="cpu", precision=asked) as pipeline:
            assert (pipeline.precision, pipeline.variant) == (drawn, variant)


def test_auto_without_a_passed_gate_is_float32(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_flags(monkeypatch, VNNI)
    settings = settings_for(read_manifest(add_variant(tiny, gate="missed"))[0], "cpu")
    with Pipeline(read_for(tiny, settings), settings) as pipeline:
        assert (pipeline.precision, pipeline.variant) == ("fp32", None)


def test_a_pipeline_opens_what_its_settings_say(eight: Path) -> None:
    for variant, asked in ((None, "int8"), ("int8-x86", "fp32")):
        with pytest.raises(InvalidArgument, match="Read it with read_for"):
            Pipeline(read_bundle(eight, variant), Settings("cpu", 1, asked))
