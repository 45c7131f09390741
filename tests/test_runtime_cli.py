"""The command line: results, exit statuses, and nothing written where something fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from audio_factory import encoded
from bundle_factory import edit_manifest, put
from PIL import Image
from tiny_bundle import SHORTCUT, add_variant, write_tiny_bundle

import runtime
from runtime import bench, cli
from runtime.bench import synthetic_speech, wav_bytes
from runtime.cli import main
from runtime.commands import plan_outputs
from runtime.errors import CODES, InvalidArgument, OutputUnwritable

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def shortcut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "shortcut", arm=SHORTCUT)


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "anna-secret.wav"
    path.parent.mkdir()
    path.write_bytes(wav_bytes(synthetic_speech(), 16000))
    return path


def s2f(*arguments: object) -> int:
    return main([str(one) for one in arguments])


def failure(capsys: pytest.CaptureFixture[str], name: str) -> str:
    """The one error line on stderr, which must carry the code of error `name`; stdout must be empty."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"s2f: error [{CODES[name]}]: ")
    return err


def test_from_a_file_to_a_png_in_a_process_of_its_own(bundle: Path, voice: Path, tmp_path: Path) -> None:
    out = tmp_path / "face.png"
    command = [sys.executable, "-m", "runtime", "generate", str(voice), "-o", str(out), "--bundle", str(bundle)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{out}  seed 0, 4 steps")
    with Image.open(out) as image:
        assert image.size == (32, 32)
        with runtime.load(bundle) as pipeline:
            np.testing.assert_array_equal(np.asarray(image), pipeline.generate(voice).image)


def test_the_image_says_nothing_of_its_input(bundle: Path, voice: Path, tmp_path: Path) -> None:
    for name in ("face.png", "face.jpg", "face.webp"):
        assert s2f("generate", voice, "-o", tmp_path / name, "--bundle", bundle) == 0
        data = (tmp_path / name).read_bytes()
        assert b"anna" not in data
        assert b"trainedAlgorithmicMedia" in data


def test_options_reach_the_pipeline(bundle: Path, voice: Path, tmp_path: Path) -> None:
    options = ["--steps", 2, "--seed", 5, "--guidance", 3, "--window", "centre", "--device", "cpu", "--threads", 1]
    assert s2f("generate", voice, "-o", tmp_path / "a.png", "--bundle", bundle, *options) == 0
    with runtime.load(bundle) as pipeline, Image.open(tmp_path / "a.png") as image:
        wanted = pipeline.generate(voice, steps=2, seed=5, guidance=3, window="centre").image
        np.testing.assert_array_equal(np.asarray(image), wanted)


def test_prior_weight_reaches_the_pipeline(shortcut: Path, voice: Path, tmp_path: Path) -> None:
    options = ["--bundle", shortcut, "--prior-weight", 0.1]
    assert s2f("generate", voice, "-o", tmp_path / "a.png", *options) == 0
    with runtime.load(shortcut) as pipeline, Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pipeline.generate(voice, prior_weight=0.1).image)


def test_several_portraits_go_into_a_folder(
    bundle: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = voice.with_name("ben.wav")
    other.write_bytes(wav_bytes(synthetic_speech(seed=1), 16000))
    out = tmp_path / "new" / "faces"
    assert s2f("generate", voice, other, "-o", out, "--bundle", bundle, "--n", 2, "--seed", 3, "--format", "webp") == 0
    names = ["anna-secret-3.webp", "anna-secret-4.webp", "ben-3.webp", "ben-4.webp"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [str(out / name) for name in names]
    assert len({(out / name).read_bytes() for name in names}) == 4


def test_one_bad_input_and_nothing_is_written(
    bundle: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.wav"
    assert s2f("generate", voice, missing, "-o", tmp_path / "faces", "--bundle", bundle) == CODES["AudioNotFound"]
    assert str(missing) in failure(capsys, "AudioNotFound")
    assert not (tmp_path / "faces").exists()


BAD_AUDIO = {
    "empty": (b"", "AudioUnreadable"),
    "text": (b"this is no audio\n" * 50, "AudioUnreadable"),
    "truncated": (wav_bytes(synthetic_speech(), 16000)[:30], "AudioUnreadable"),
    "silent": (wav_bytes(np.zeros(96000, np.float32), 16000), "AudioSilent"),
    "short": (wav_bytes(synthetic_speech()[:4000], 16000), "AudioTooShort"),
    "no samples": (wav_bytes(np.zeros(0, np.float32), 16000), "AudioTooShort"),
    "one sample": (wav_bytes(np.full(1, 0.5, np.float32), 16000), "AudioTooShort"),
    "not a number": (encoded(np.where(np.arange(96000) == 50000, np.nan, 0.1), subtype="FLOAT"), "AudioNonFinite"),
    "infinite": (encoded(np.where(np.arange(96000) == 50000, np.inf, 0.1), subtype="FLOAT"), "AudioNonFinite"),
}


@pytest.mark.parametrize("case", BAD_AUDIO)
def test_bad_audio(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    data, error = BAD_AUDIO[case]
    path = tmp_path / "in.wav"
    path.write_bytes(data)
    assert s2f("generate", path, "-o", tmp_path / "face.png", "--bundle", bundle) == CODES[error]
    failure(capsys, error)
    assert [item.name for item in tmp_path.iterdir()] == ["in.wav"]


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "unet.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "unet.onnx").write_bytes(data)


def escape(folder: Path) -> None:
    """The file named outside the folder is there and has the right bytes: only its place is wrong."""
    (folder / "decoder.onnx").rename(folder.parent / "decoder.onnx")
    edit_manifest(folder, lambda value: put(value, "stages.decoder.file", "../decoder.onnx"))


BAD_BUNDLES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing file": (lambda folder: (folder / "encoder.onnx").unlink(), "BundleInvalid", "encoder.onnx"),
    "missing manifest": (lambda folder: (folder / "manifest.json").unlink(), "BundleNotFound", "manifest.json"),
    "flipped bit": (flip_a_bit, "BundleTampered", "unet.onnx"),
    "escaping path": (escape, "BundleInvalid", "stages.decoder.file"),
    "newer schema": (
        lambda folder: edit_manifest(folder, lambda value: put(value, "schema_version", 4)),
        "BundleVersion",
        "Upgrade",
    ),
}


@pytest.mark.parametrize("case", BAD_BUNDLES)
def test_bad_bundle(voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    damage, error, hint = BAD_BUNDLES[case]
    folder = write_tiny_bundle(tmp_path / "bundles" / "tiny")
    damage(folder)
    before = sorted(tmp_path.rglob("*"))
    for out in (tmp_path / "face.png", tmp_path / "new" / "faces"):
        assert s2f("generate", voice, "-o", out, "--bundle", folder) == CODES[error]
        assert hint in failure(capsys, error)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--steps", "3"], "StepsUnavailable"),
        (["--device", "abacus"], "DeviceUnavailable"),
        (["--seed", "-1"], "InvalidArgument"),
        (["--seed", str(2**63)], "InvalidArgument"),
        (["--guidance", "99"], "InvalidArgument"),
        (["--guidance", "nan"], "InvalidArgument"),
        (["--prior-weight", "0.01"], "InvalidArgument"),
        (["--threads", "0"], "InvalidArgument"),
        (["--window", "end"], "InvalidArgument"),
        (["--n", "0"], "InvalidArgument"),
        (["--n", "2"], "InvalidArgument"),
        (["--bundle", "nowhere"], "BundleNotFound"),
    ],
)
def test_bad_options(
    bundle: Path, voice: Path, capsys: pytest.CaptureFixture[str], options: list[str], error: str
) -> None:
    tmp_path = voice.parent.parent
    assert s2f("generate", voice, "-o", tmp_path / "face.png", "--bundle", bundle, *options) == CODES[error]
    failure(capsys, error)
    assert [item.name for item in tmp_path.iterdir()] == ["in"]


def test_a_missing_provider(
    bundle: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    out = tmp_path / "face.png"
    assert s2f("generate", voice, "-o", out, "--bundle", bundle, "--device", "cuda") == CODES["DeviceUnavailable"]
    assert "s2f-edge[gpu]" in failure(capsys, "DeviceUnavailable")
    assert not out.exists()


def test_outputs_that_cannot_be_written(
    bundle: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for out in (tmp_path / "file" / "face.png", tmp_path / "file" / "faces", tmp_path / "file"):
        assert s2f("generate", voice, "-o", out, "--bundle", bundle) == CODES["OutputUnwritable"]
        failure(capsys, "OutputUnwritable")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_failing_write_takes_its_new_folder_back(
    bundle: Path, voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    status = s2f("generate", voice, "-o", tmp_path / "a" / "b", "--bundle", bundle, "--n", 3)
    assert status == CODES["OutputUnwritable"]
    failure(capsys, "OutputUnwritable")
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_taken_back_hides_nothing(
    bundle: Path, voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_and_shared(_: int) -> None:
        (tmp_path / "a" / "of-somebody-else").touch()
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full_and_shared)
    status = s2f("generate", voice, "-o", tmp_path / "a", "--bundle", bundle, "--n", 2)
    assert status == CODES["OutputUnwritable"]
    assert os.strerror(28) in failure(capsys, "OutputUnwritable")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["of-somebody-else"]


def test_plan_of_one_portrait(tmp_path: Path) -> None:
    assert plan_outputs(["a.wav"], tmp_path / "x.jpg", 0, 1, None) == [tmp_path / "x.jpg"]
    assert plan_outputs(["in/a.wav"], tmp_path, 0, 1, None) == [tmp_path / "a.png"]
    assert plan_outputs(["a.wav"], tmp_path / "new", 0, 1, "jpeg") == [tmp_path / "new" / "a.jpg"]
    with pytest.raises(InvalidArgument, match="bmp"):
        plan_outputs(["a.wav"], tmp_path / "x.bmp", 0, 1, None)
    (tmp_path / "photos.v2").mkdir()
    assert plan_outputs(["a.wav"], tmp_path / "photos.v2", 0, 1, None) == [tmp_path / "photos.v2" / "a.png"]


def test_plan_keeps_names_apart(tmp_path: Path) -> None:
    paths = plan_outputs(["x/a.wav", "y/a.flac", "A.ogg", "a-2.wav"], tmp_path, 0, 1, None)
    assert [path.name for path in paths] == ["a.png", "a-2.png", "A-3.png", "a-2-2.png"]


def test_plan_refuses_a_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(OutputUnwritable):
        plan_outputs(["a.wav", "b.wav"], tmp_path / "taken", 0, 1, None)
    with pytest.raises(InvalidArgument, match="folder"):
        plan_outputs(["a.wav", "b.wav"], tmp_path / "x.png", 0, 1, None)


def test_info(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert s2f("info", bundle) == 0
    text = capsys.readouterr().out
    assert "32 x 32 pixels" in text
    assert "1 (ddim), 2 (ddim), 4 (ddim); default 4" in text
    assert s2f("info", bundle, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["manifest"] == json.loads((bundle / "manifest.json").read_bytes())
    assert facts["identity"] in text


def test_info_tells_what_a_caller_may_choose(bundle: Path, shortcut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert s2f("info", bundle) == s2f("info", shortcut) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("guidance", "prior"))]
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        "0 to 4; default 1.5",
        "none at every step, weight 0, folded in",
        "2, folded in",
        "add at the start, weight 0 to 0.1; default 0.01",
    ]


def test_verify(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert s2f("verify", bundle) == 0
    assert capsys.readouterr().out.count("good") == 5


@pytest.fixture
def eight_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a variant, on a processor that is made for it."""
    monkeypatch.setattr("runtime.variants.cpu_flags", lambda: ["avx512_vnni"])
    return add_variant(write_tiny_bundle(tmp_path / "eight"))


def test_info_tells_of_variants(eight_bits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert s2f("info", eight_bits) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("int8-x86"))
    assert "MB for unet; gate passed, PSNR 41.5 dB and cosine 0.990 to float32 over 256 pairs" in line


def test_the_precision_reaches_the_pipeline(
    eight_bits: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, refused = ["--bundle", eight_bits, "--device", "cpu"], CODES["DeviceUnavailable"]
    assert s2f("generate", voice, "-o", tmp_path / "a.png", *options, "--precision", "int8") == 0
    assert s2f("generate", voice, "-o", tmp_path / "b.png", *options, "--precision", "bf16") == refused
    assert "fp32, int8" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


def test_verify_looks_at_variants_and_compares_with_float32(
    eight_bits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert s2f("verify", eight_bits, "--device", "cpu") == 0
    text = capsys.readouterr().out
    assert "the same of the variant int8-x86: good" in text
    assert "graphs open on cpu in int8" in text
    assert "PSNR to the CPU in fp32 at least 100.0 dB" in text
    assert s2f("verify", eight_bits, "--device", "cpu", "--precision", "fp32") == 0
    assert "PSNR" not in capsys.readouterr().out
    (eight_bits / "unet.int8-x86.onnx").write_bytes(b"something else")
    assert s2f("verify", eight_bits, "--device", "cpu", "--precision", "fp32") == CODES["BundleTampered"]


@pytest.mark.parametrize(("found", "good"), [(31.0, True), (29.0, False)])
def test_eight_bits_may_draw_a_little_differently(
    eight_bits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, found: float, good: bool
) -> None:
    monkeypatch.setattr("runtime.portrait.psnr", lambda *_: found)
    assert s2f("verify", eight_bits, "--device", "cpu") == (0 if good else CODES["BackendFailed"])
    assert good or "30 are needed. Calibrate it anew" in capsys.readouterr().err


def test_verify_finds_a_flipped_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_bundle(tmp_path / "tiny")
    data = bytearray((folder / "decoder.onnx").read_bytes())
    data[100] ^= 4
    (folder / "decoder.onnx").write_bytes(data)
    assert s2f("verify", folder) == CODES["BundleTampered"]
    assert "decoder.onnx" in failure(capsys, "BundleTampered")


def test_bench_writes_its_report(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.cold, "IMPORTS", 1)
    monkeypatch.setattr(bench.cold, "COLD_STARTS", 1)
    monkeypatch.setattr(bench.report, "IDLE_SECONDS", 0.1)
    out = tmp_path / "report.json"
    assert s2f("bench", bundle, "--runs", 3, "--warmup", 0, "--steps", 2, "--json", out) == 0
    assert "\nend to end  " in capsys.readouterr().out
    report = bench.read_report(out)
    assert report["stages_ms"]["end_to_end"]["count"] == 3
    assert len(report["raw_once_ms"]["process_to_png"]) == 1
    assert s2f("bench", bundle, "--runs", 1, "--warmup", 0, "--warm-only", "--markdown") == 0
    assert "\n| end to end | " in capsys.readouterr().out


def test_bench_finds_an_unwritable_report_before_it_measures(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []
    monkeypatch.setattr(bench, "measure", lambda *_, **options: measured.append(options))
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "nowhere" / "report.json", tmp_path / "folder"):
        assert s2f("bench", bundle, "--json", out) == CODES["OutputUnwritable"]
        assert str(out) in failure(capsys, "OutputUnwritable")
    assert measured == []
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_bench_keeps_the_old_report_when_measuring_fails(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    out.write_bytes(b"old")
    assert s2f("bench", bundle, "--runs", 0, "--json", out) == CODES["InvalidArgument"]
    failure(capsys, "InvalidArgument")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("report.json", b"old")]


def test_prepare_says_what_it_does_on_each_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    text = capsys.readouterr().out
    assert all(f"{device}:" in text for device in ("cpu", "openvino", "cuda", "tensorrt"))


@pytest.mark.parametrize("command", ["", "generate", "info", "verify", "doctor", "bench"])
def test_help_says_what_a_portrait_is_not(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "A voice does not determine a face." in text
    assert "identifies nobody" in text
    assert "Not for surveillance" in text


def test_a_command_line_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["draw"], ["generate"], ["generate", "a.wav"], ["info", "--steps", "x"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert capsys.readouterr().out == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"s2f-edge {runtime.__version__}\n"


@pytest.mark.parametrize("debug", [False, True])
def test_an_unforeseen_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], debug: bool
) -> None:
    def broken() -> Path:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("runtime.pipeline.shipped_bundle", broken)
    assert s2f("info", *(["--debug"] if debug else [])) == cli.UNEXPECTED
    err = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: oops" in err
    assert ("Traceback" in err) is debug
    assert debug or err.count("\n") == 1


@pytest.mark.parametrize("command", ["verify", "doctor", "info"])
def test_a_package_that_is_not_installed(command: str) -> None:
    code = "import sys; sys.modules['numpy'] = None\nfrom runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == CODES["BackendMissing"]
    wanted = f"s2f: error [{done.returncode}]: The package numpy is not installed. Run: pip install numpy\n"
    assert (done.stdout, done.stderr) == ("", wanted)


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.pipeline.shipped_bundle", stopped)
    assert s2f("info") == 130
    assert capsys.readouterr().err == "s2f: interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="a shell's pipe")
def test_a_reader_that_goes_away(bundle: Path) -> None:
    command = [sys.executable, "-m", "runtime", "info", str(bundle)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == cli.UNEXPECTED
