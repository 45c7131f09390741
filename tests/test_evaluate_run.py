"""Trained runs and bundles as painters, and the commands that measure them."""

import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from conftest import CORPUS
from tiny_bundle import DIFFUSION, SHORTCUT, write_tiny_bundle

import runtime
from runtime.audio import load_speech
from runtime.errors import CheckpointInvalid, CorpusInvalid, InvalidArgument, OutputUnwritable
from runtime.noise import seeded_noise
from training.checkpoint import Origin, load_checkpoint, load_system
from training.cli import main
from training.corpus.table import read_corpus
from training.evaluate.judge import Judge, JudgeNetwork, attributes_of, save_judge
from training.evaluate.painter import RunPainter, reconstructed, run_identity, run_painters
from training.sampler import folded_network, sample


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory):
    """A judge of random weights."""
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    names, _ = attributes_of(read_corpus(CORPUS).identities)
    torch.manual_seed(0)
    scales = torch.zeros(1 + len(names)), torch.ones(1 + len(names))
    save_judge(path, Judge(JudgeNetwork(len(names)).eval(), names, *scales, Origin("", "", "", "", ""), {}, {}))
    return path


@pytest.fixture(scope="module")
def painters(trained):
    return {painter.name: painter for painter in run_painters(trained)}


@pytest.fixture(scope="module")
def pcm():
    """float32 [2, 96000]: a woman's and a man's clip."""
    corpus = read_corpus(CORPUS)
    return np.stack([load_speech(corpus.clip_paths(identity)[0]) for identity in corpus.identities[:2]])


def benchmark(name):
    """A script of benchmarks/ as a module."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quality():
    return benchmark("quality")


def test_a_run_paints_with_every_trained_arm(painters):
    assert list(painters) == ["shortcut", "diffusion"]
    assert painters["shortcut"].steps == (1, 2, 4)  # the tiny configuration has three levels
    assert painters["diffusion"].steps == (1, 2, 4, 8, 25)
    assert (painters["shortcut"].default_steps, painters["diffusion"].default_steps) == (4, 8)
    low, high = painters["shortcut"].prior_weights
    assert low < painters["shortcut"].prior_weight < high
    assert len(set(painters["diffusion"].prior_weights)) == 1
    assert painters["shortcut"].identity != painters["diffusion"].identity


@pytest.mark.parametrize("arm", ["shortcut", "diffusion"])
def test_portraits_follow_voice_and_seed_and_nothing_else(trained, pcm, arm):
    system = load_system(trained, arm)
    with torch.no_grad():
        system.denoiser.project.weight.mul_(100)  # after a moment of training, voices change less than a grey level
    painter = RunPainter(dataclasses.replace(system, latent_std=100 * system.latent_std), "loud")
    both = painter.paint(np.repeat(pcm, 2, axis=0), [3, 4, 3, 4], 2, system.prior_weight)
    assert both.shape == (4, 32, 32, 3)
    assert both.dtype == np.uint8
    alone = painter.paint(pcm[1:], [4], 2, system.prior_weight)
    assert np.abs(both[3].astype(int) - alone[0]).max() <= 1
    assert not np.array_equal(both[0], both[1])
    assert not np.array_equal(both[0], both[2])


def test_the_noise_is_the_runtime_s(painters, pcm):
    system = painters["shortcut"].system
    with torch.no_grad():
        embedding = system.speech_encoder(torch.from_numpy(pcm[:1]))
        x = torch.from_numpy(seeded_noise(9, tuple(system.prior.shape)))[None] + system.prior_weight * system.prior
        table = system.table(2, "shortcut")
        latent = sample(folded_network(system.denoiser, embedding), x, table, system.config.diffusion.latent_clip)
        face = system.face_decoder(latent * system.latent_std.view(1, -1, 1, 1) + system.latent_mean.view(1, -1, 1, 1))
    expected = ((face.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(expected - painters["shortcut"].paint(pcm[:1], [9], 2, system.prior_weight)[0]).max() <= 1


def test_the_prior_s_weight_is_heard_where_it_may_vary(painters, pcm):
    shortcut, diffusion = painters["shortcut"], painters["diffusion"]
    # A network of a few steps hardly hears a small shift, so here the prior is a large one.
    loud = RunPainter(dataclasses.replace(shortcut.system, prior=100 * shortcut.system.prior), "loud")
    assert not np.array_equal(*(loud.paint(pcm[:1], [1], 1, weight) for weight in (0.0, 0.1)))
    diffusion.paint(pcm[:1], [1], 1, diffusion.prior_weight)
    for painter, weight in ((shortcut, 0.9), (diffusion, 0.5)):
        with pytest.raises(InvalidArgument, match="prior weight"):
            painter.paint(pcm[:1], [1], 1, weight)


def test_an_arm_is_known_by_what_it_paints_with(trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("cache", "logs", "samples")))
    before = run_identity(run, "diffusion")
    assert before == run_identity(trained, "diffusion")
    (run / "shortcut.safetensors").unlink()
    assert run_identity(run, "diffusion") == before
    assert [painter.name for painter in run_painters(run)] == ["diffusion"]
    decoder = run / "decoder.safetensors"
    decoder.write_bytes(decoder.read_bytes() + b" ")
    assert run_identity(run, "diffusion") != before


def test_reconstructions_are_portraits_of_the_run_s_size(trained):
    corpus = read_corpus(CORPUS)
    made = reconstructed(trained, corpus, corpus.identities[:3])
    assert made.shape == (3, 32, 32, 3)
    assert made.dtype == np.uint8
    assert not np.array_equal(made[0], made[1])


def test_the_command_measures_a_run(trained, judge_file, tmp_path, capsys):
    command = ["evaluate", str(trained), "--corpus", str(CORPUS), "--judge", str(judge_file), "--seeds", "1"]
    assert main([*command, "--out", str(tmp_path / "report")]) == 0
    written = capsys.readouterr().out.split()
    assert str(tmp_path / "report" / "quality.md") in written
    result = json.loads((tmp_path / "report" / "quality.json").read_text(encoding="utf-8"))
    rows = [(row["arm"], row["steps"]) for row in result["rows"]]
    assert rows[:3] == [("real portraits", None), ("another's portrait", None), ("reconstruction", None)]
    assert rows[3:] == [*(("shortcut", n) for n in (1, 2, 4)), *(("diffusion", n) for n in (1, 2, 4, 8, 25))]
    assert [(row["arm"], row["prior_weight"]) for row in result["prior"]] == [
        ("shortcut", w) for w in (0.0, 0.003, 0.01, 0.03, 0.1)
    ]
    assert str(tmp_path) not in json.dumps(result)
    assert result["voices"] == 2


@pytest.mark.parametrize("fault", ["run", "corpus", "judge", "out"])
def test_the_command_s_errors_have_codes(trained, judge_file, tmp_path, fault, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    places = {"run": trained, "corpus": CORPUS, "judge": judge_file, "out": tmp_path / "report"}
    places[fault] = tmp_path / ("file" if fault == "out" else "nowhere")
    options = [text for name in ("corpus", "judge", "out") for text in (f"--{name}", str(places[name]))]
    codes = {"run": CheckpointInvalid, "corpus": CorpusInvalid, "judge": CheckpointInvalid, "out": OutputUnwritable}
    assert main(["evaluate", str(places["run"]), *options]) == codes[fault].code
    assert str(places[fault]) in capsys.readouterr().err


@pytest.mark.parametrize("arm", [DIFFUSION, SHORTCUT])
def test_a_bundle_paints_what_its_runtime_generates(quality, tmp_path, pcm, arm):
    with runtime.load(write_tiny_bundle(tmp_path / "tiny", arm=arm), device="cpu", threads=1) as pipeline:
        painter = quality.BundlePainter("tiny", pipeline)
        assert painter.steps == (1, 2, 4)
        assert painter.prior_weights == (arm.prior.min, arm.prior.max)
        drawn = painter.paint(pcm, [5, 6], 2, arm.prior.weight)
        expected = pipeline.generate((pcm[1], 16_000), seed=6, steps=2).image
        np.testing.assert_array_equal(drawn[1], expected)
        if arm is SHORTCUT:
            assert not np.array_equal(drawn, painter.paint(pcm, [5, 6], 2, 0.1))


def test_bundles_are_measured_side_by_side(quality, judge_file, tmp_path, monkeypatch, capsys):
    bundles = [write_tiny_bundle(tmp_path / name, arm=arm) for name, arm in (("a", DIFFUSION), ("b", SHORTCUT))]
    options = ["--corpus", str(CORPUS), "--judge", str(judge_file), "--seeds", "1", "--device", "cpu", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["quality.py", *map(str, bundles), *options, "--out", str(tmp_path / "report")])
    assert quality.main() == 0
    result = json.loads((tmp_path / "report" / "quality.json").read_text(encoding="utf-8"))
    assert [arm["name"] for arm in result["arms"]] == ["a", "b"]
    assert {(row["arm"], row["steps"]) for row in result["rows"][2:]} == {(a, n) for a in "ab" for n in (1, 2, 4)}
    assert {row["arm"] for row in result["prior"]} == {"b"}
    (tmp_path / "c").mkdir()
    again = [bundles[0], write_tiny_bundle(tmp_path / "c" / "a")]
    monkeypatch.setattr(sys, "argv", ["quality.py", *map(str, again), *options, "--out", str(tmp_path / "report")])
    assert quality.main() == InvalidArgument.code
    assert "rename" in capsys.readouterr().err


def test_every_mode_of_the_prior_is_trained_and_measured(trained, judge_file, tmp_path, monkeypatch, capsys):
    modes = benchmark("prior_modes")
    monkeypatch.setattr(modes, "ARMS", (("none", 0.0), ("add", 0.1), ("subtract", 0.1)))
    options = ["--corpus", str(CORPUS), "--judge", str(judge_file), "--seeds", "1", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["prior_modes.py", str(trained), *options, "--out", str(tmp_path / "out")])
    assert modes.main() == 0
    text = (tmp_path / "out" / "prior-modes.md").read_text(encoding="utf-8")
    assert all(f"| {mode} | 8 | {weight} | 2 | 2 |" in text for mode, weight in (("none", 0), ("add", 0.1)))
    files = [tmp_path / "out" / "runs" / name / "diffusion.safetensors" for name in ("none-0", "add-0.1")]
    weights = [load_checkpoint(file) for file in files]
    assert [one.config.diffusion.prior_mode for one in weights] == ["none", "add"]
    assert any(not torch.equal(value, weights[1].tensors[name]) for name, value in weights[0].tensors.items())
    before = [file.stat().st_mtime_ns for file in files]
    assert modes.main() == 0  # continues: nothing is trained again
    assert [file.stat().st_mtime_ns for file in files] == before
    monkeypatch.setattr(sys, "argv", ["prior_modes.py", str(tmp_path), *options, "--out", str(tmp_path / "out")])
    assert modes.main() == CheckpointInvalid.code
    assert "prior_modes: error" in capsys.readouterr().err
