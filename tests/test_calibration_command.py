"""`s2f-calibrate` from recordings to a bundle that draws in eight bits, over a bundle that runs in milliseconds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_bundle import SHORTCUT, write_tiny_bundle
from voice_factory import speech_folder

for package in ("onnx", "safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package)

import runtime
from calibration import calibrate, layers, run
from calibration.cli import main
from runtime.bundle import read_bundle, read_manifest
from runtime.errors import CODES

FEW = ("--portraits", "12", "--pairs", "40")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech_folder(tmp_path_factory.mktemp("speech"), per_sex=20)


@pytest.fixture(autouse=True)
def small_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny bundle's layers are all too small to be worth it."""
    monkeypatch.setattr(layers, "SMALL", 1)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT)


@pytest.fixture
def vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.variants.cpu_flags", lambda: ["avx512_vnni"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.usefixtures("vnni")
def test_from_recordings_to_portraits_in_eight_bits(bundle, speech, tmp_path, capsys):
    target, report = tmp_path / "tiny8", tmp_path / "report"
    assert main([str(bundle), "--data", str(speech), "-o", str(target), "--report", str(report), *FEW]) == 0
    assert "gate passed" in capsys.readouterr().out
    manifest, _ = read_manifest(target)
    assert set(manifest.variants) == {"int8-x86", "int8-tensorrt"}
    variant = manifest.variants["int8-x86"]
    assert (variant.gate, set(variant.stages) > {"encoder"}) == ("passed", True)
    assert variant.pairs >= 40
    assert variant.psnr > 30
    assert read_bundle(target).files == read_bundle(bundle).files  # the float graphs stay as they are
    assert "## Eight bits" in (target / "MODEL_CARD.md").read_text(encoding="utf-8")

    voice = next(speech.glob("*.flac"), None) or next(path for path in speech.iterdir() if path.suffix == ".wav")
    with runtime.load(target, device="cpu", threads=1) as eight, runtime.load(bundle, device="cpu", threads=1) as whole:
        assert (eight.precision, eight.variant, whole.precision) == ("int8", "int8-x86", "fp32")
        first, second = eight.generate(voice, seed=5).image, whole.generate(voice, seed=5).image
    assert not np.array_equal(first, second)
    assert runtime.portrait.psnr(first, second) > 30

    assert not (tmp_path / ".tiny8.calibration").exists()
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "A voice does not determine a face" in text
    assert "| int8-x86, everything |" in text
    told = json.loads((report / "report.json").read_bytes())
    assert told["variants"]["int8-x86"]["gate"].endswith("gate passed")
    assert len(told["layers"]) == 3
    assert {"layers.csv", "variants.csv", "sensitivity.png", "steps.png", "portraits-int8-x86.jpg"} <= set(
        contents(report)
    )
    assert b"trainedAlgorithmicMedia" in (report / "portraits-int8-x86.jpg").read_bytes()


def test_the_same_again_gives_the_same_bytes_and_replaces_only_by_force(bundle, speech, tmp_path, capsys):
    one = ["--data", str(speech), "--family", "int8-x86", *FEW]
    assert main([str(bundle), "-o", str(tmp_path / "a"), *one]) == 0
    before = contents(tmp_path / "a")
    assert main([str(bundle), "-o", str(tmp_path / "b"), *one]) == 0
    assert contents(tmp_path / "b") == before
    assert main([str(bundle), "-o", str(tmp_path / "a"), *one]) == CODES["OutputUnwritable"]
    assert "--force" in capsys.readouterr().err
    assert main([str(tmp_path / "a"), "-o", str(tmp_path / "a"), *one, "--force"]) == 0  # in place, of its own result
    assert {name: data for name, data in contents(tmp_path / "a").items() if name.endswith(".onnx")} == {
        name: data for name, data in before.items() if name.endswith(".onnx")
    }


def test_an_interrupted_calibration_goes_on(bundle, speech, tmp_path, monkeypatch, capsys):
    one = [str(bundle), "--data", str(speech), "-o", str(tmp_path / "a"), "--family", "int8-x86", *FEW]
    usual, drawn = calibrate.Sampler.draw, []

    def stops(self, pairs, see=None):
        drawn.append(see is not None)
        if sum(drawn) == 9:
            raise KeyboardInterrupt
        return usual(self, pairs, see)

    monkeypatch.setattr(calibrate, "KEPT_EVERY", 4)
    monkeypatch.setattr(calibrate.Sampler, "draw", stops)
    assert main(one) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert (tmp_path / ".a.calibration").is_dir()
    drawn.clear()
    monkeypatch.setattr(
        calibrate.Sampler,
        "draw",
        lambda self, pairs, see=None: drawn.append(see is not None) or usual(self, pairs, see),
    )
    assert main(one) == 0
    assert sum(drawn) == 12 - 8
    assert main([*one[:4], str(tmp_path / "b"), *one[5:]]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_silence_and_copies_are_caught(bundle, tmp_path, capsys):
    """Eight clips of nothing are refused at the door; eight copies of a faint hiss leave no other voice to judge by."""
    silence, hiss = tmp_path / "silence", tmp_path / "hiss"
    noise = np.random.default_rng(0).normal(0, 0.002, 96000).astype(np.float32)
    for folder, pcm in ((silence, np.zeros(96000, np.float32)), (hiss, noise)):
        folder.mkdir()
        for index in range(8):
            soundfile.write(folder / f"{index}.wav", pcm, 16000)
    options = ["-o", str(tmp_path / "out"), "--family", "int8-x86", *FEW]
    assert main([str(bundle), "--data", str(silence), *options, "--force"]) == CODES["CorpusInvalid"]
    assert main([str(bundle), "--data", str(hiss), *options]) == CODES["InvalidArgument"]
    assert "1 different recordings, 32 are needed" in capsys.readouterr().err
    assert main([str(bundle), "--data", str(hiss), *options, "--force"]) == CODES["GateMissed"]
    assert "0 pairs of other voices were compared" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out-report" / "report.md").is_file()


@pytest.mark.usefixtures("vnni")
def test_ranges_that_do_not_hold_miss_the_gate(bundle, speech, tmp_path, monkeypatch, capsys):
    """As if what was calibrated on had been a tenth as loud inside the network as what comes later."""
    usual = calibrate.METHODS["minmax"]
    monkeypatch.setitem(calibrate.METHODS, "minmax", lambda seen: tuple(0.1 * end for end in usual(seen)))
    monkeypatch.setattr(calibrate, "STRICTER", calibrate.Gate(psnr=0, cosine=-1, agreement=0, growth=np.inf, pairs=1))
    options = ["--data", str(speech), "-o", str(tmp_path / "out"), "--family", "int8-x86", "--method", "minmax", *FEW]
    assert main([str(bundle), *options]) == CODES["GateMissed"]
    assert "psnr is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([str(bundle), *options, "--keep-missed"]) == 0
    assert read_manifest(tmp_path / "out")[0].variants["int8-x86"].gate == "missed"
    with runtime.load(tmp_path / "out", device="cpu", threads=1) as usual_choice:
        assert usual_choice.precision == "fp32"
    with runtime.load(tmp_path / "out", device="cpu", threads=1, precision="int8") as asked:
        assert asked.precision == "int8"


def test_where_integers_cannot_be_judged_a_variant_is_unverified(bundle, speech, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.variants.cpu_flags", lambda: ["avx2"])
    assert main([str(bundle), "--data", str(speech), "-o", str(tmp_path / "out"), *FEW]) == 0
    gates = {name: one.gate for name, one in read_manifest(tmp_path / "out")[0].variants.items()}
    assert gates == {"int8-x86": "unverified", "int8-tensorrt": "unverified"}
    with runtime.load(tmp_path / "out", device="cpu", threads=1) as pipeline:
        assert pipeline.precision == "fp32"


def test_stored_small_keeps_the_portraits_and_says_so(bundle, speech, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "STRICTER", calibrate.Gate(psnr=0, cosine=-1, agreement=0, growth=np.inf, pairs=1))
    target = tmp_path / "small"
    one = ["--data", str(speech), "--family", "int8-x86", *FEW, "--keep-missed"]  # random weights take rounding badly
    assert main([str(bundle), "-o", str(target), "--store", "int8", *one]) == 0
    small, before = read_bundle(target), read_bundle(bundle)
    assert small.files["unet"] != before.files["unet"]
    assert "stored in eight bits" in (target / "MODEL_CARD.md").read_text(encoding="utf-8")
    voice = (np.random.default_rng(1).normal(0, 0.1, 96000), 16000)
    with runtime.load(target, device="cpu", precision="fp32") as a, runtime.load(bundle, device="cpu") as b:
        assert runtime.portrait.psnr(a.generate(voice).image, b.generate(voice).image) > 20


@pytest.mark.parametrize(
    "case",
    [
        ("--data", "{tmp}/nothing", "CorpusInvalid", "holds no recordings"),
        ("--portraits", "0", "InvalidArgument", "--portraits is 0"),
        ("--seed", "-1", "InvalidArgument", "--seed is -1"),
        ("--also", "nothing-of-that-name", "InvalidArgument", "no layer"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(bundle, speech, tmp_path, case, capsys):
    option, value, code, said = case
    given = [str(bundle), "--data", str(speech), "-o", str(tmp_path / "out"), *FEW]
    assert main([*given, option, value.format(tmp=tmp_path)]) == CODES[code]
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.calibration").exists()


@pytest.mark.usefixtures("vnni")
def test_a_bundle_that_is_none_and_a_graph_that_is_quantised_are_refused(bundle, speech, tmp_path, capsys):
    options = ["--data", str(speech), *FEW, "--family", "int8-x86"]
    assert main([str(tmp_path), "-o", str(tmp_path / "out"), *options]) == CODES["BundleNotFound"]
    assert main([str(bundle), "-o", str(tmp_path / "a"), *options]) == 0
    only = tmp_path / "only"
    shutil.copytree(tmp_path / "a", only)
    value = json.loads((only / "manifest.json").read_bytes())
    for stage, ref in value["variants"]["int8-x86"]["stages"].items():
        value["stages"][stage].update(ref)
    value["variants"] = {}
    (only / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    assert main([str(only), "-o", str(tmp_path / "b"), *options]) == CODES["BundleInvalid"]
    assert "quantised already" in capsys.readouterr().err


def test_a_tensor_that_is_not_finite_is_named(bundle, speech, tmp_path, monkeypatch, capsys):
    usual = calibrate.Activations.see

    def broken(self, stage, row, values):
        if stage == "unet":
            name = next(iter(self.tensors["unet"]))
            values = {**values, name: values[name] * np.float32("inf")}
        usual(self, stage, row, values)

    monkeypatch.setattr(calibrate.Activations, "see", broken)
    assert main([str(bundle), "--data", str(speech), "-o", str(tmp_path / "out"), *FEW]) == CODES["BackendFailed"]
    assert "of the unet graph holds NaN or infinite values" in capsys.readouterr().err


def test_the_report_can_be_made_without_a_measurement(bundle, speech, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure", lambda folder: {})
    assert main([str(bundle), "--data", str(speech), "-o", str(tmp_path / "out"), "--family", "int8-x86", *FEW]) == 0
    assert "## Time" not in (tmp_path / "out-report" / "report.md").read_text(encoding="utf-8")


def test_other_recordings_can_judge(bundle, speech, tmp_path):
    check = tmp_path / "check"
    check.mkdir()
    for index, pcm in enumerate(np.random.default_rng(7).normal(0, 0.1, (3, 96000)).astype(np.float32)):
        soundfile.write(check / f"{index}.wav", pcm, 16000)
    known = next(path for path in sorted(speech.iterdir()) if path.suffix in (".flac", ".wav"))
    shutil.copy(known, check)  # was calibrated on, so it does not judge
    one = [str(bundle), "--data", str(speech), "--check", str(check), "--family", "int8-x86", *FEW, "--keep-missed"]
    assert main([*one, "-o", str(tmp_path / "out")]) == 0
    assert read_manifest(tmp_path / "out")[0].variants["int8-x86"].pairs == 3 * 14  # 40 or more of three recordings


def test_a_plan_that_keeps_nothing_is_a_miss_with_a_report(bundle, speech, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "STRICTER", calibrate.Gate(psnr=200.0))
    options = ["--data", str(speech), "-o", str(tmp_path / "out"), "--family", "int8-x86", *FEW]
    assert main([str(bundle), *options]) == CODES["GateMissed"]
    assert calibrate.NOTHING in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert "given back to meet the gate" in (tmp_path / "out-report" / "layers.csv").read_text(encoding="utf-8")


def test_the_command_knows_all_methods():
    from calibration import cli, ranges

    assert ("auto", *ranges.METHODS) == cli.METHODS
