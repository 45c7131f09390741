"""Training on the fixture corpus: every stage runs, a killed run continues, the result is one system."""

import dataclasses
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conftest import CORPUS, train
from PIL import Image

from runtime.audio import load_speech
from runtime.errors import CheckpointInvalid, CorpusInvalid, TrainingDiverged
from training.checkpoint import STAGES, Origin, load_checkpoint, load_stage, load_system, save_checkpoint
from training.config import load_config
from training.corpus.table import read_corpus
from training.data import fingerprint, load_pairs
from training.loop import Stage, run_stage
from training.prior import balanced, convergence_table, reachable


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_all_stages_leave_their_files(trained):
    assert {p.name for p in trained.glob("*.safetensors")} == {f"{stage}.safetensors" for stage in STAGES}
    sheets = sorted((trained / "samples").glob("*.png"))
    assert {s.name.split("-")[0] for s in sheets} == set(STAGES) - {"prior"}
    size = load_config("tiny").face.size
    for sheet in sheets:
        assert Image.open(sheet).size[1] % size == 0
    assert list((trained / "logs").rglob("events*"))


def test_system_loads_and_its_latents_are_standardised(trained):
    system = load_system(trained)
    assert system.prior.shape == (4, 8, 8)
    assert system.name == "tiny"
    assert "CC0" in system.licence
    assert "6 train" in system.training_data
    assert torch.isfinite(system.latent_std).all()
    assert (system.latent_std > 0).all()


@pytest.mark.parametrize("stage", ["pretrain", "diffusion"])
def test_killed_training_continues_to_the_same_weights(trained, tmp_path, stage):
    if stage == "diffusion":
        for name in ("pretrain.safetensors", "align.safetensors", "prior.safetensors"):
            (tmp_path / name).write_bytes((trained / name).read_bytes())
    process = train(stage, tmp_path)
    state = tmp_path / f"{stage}.state.safetensors"
    wait_for(state, process)
    process.send_signal(signal.SIGSTOP)  # so that it cannot finish between this line and the kill
    saved = state.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not saved:
        pytest.skip("the stage finished before it could be interrupted")
    assert 0 < load_checkpoint(state).step <= load_config("tiny").pretrain.steps
    process = train(stage, tmp_path)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "continues at step" in errors
    whole, resumed = (load_checkpoint(run / f"{stage}.safetensors").tensors for run in (trained, tmp_path))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert not state.exists()


def test_stages_of_other_encoders_or_corpora_are_not_mixed(trained, tmp_path):
    for file in trained.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    pretrained = load_checkpoint(tmp_path / "pretrain.safetensors")
    with pytest.raises(CheckpointInvalid, match="another corpus"):
        load_stage(tmp_path, "pretrain", pretrained.config, "of another corpus")
    with pytest.raises(CheckpointInvalid, match="another configuration"):
        load_stage(tmp_path, "pretrain", dataclasses.replace(pretrained.config, seed=5))
    again = dataclasses.replace(pretrained, tensors={k: v + 1 for k, v in pretrained.tensors.items()})
    save_checkpoint(tmp_path / "pretrain.safetensors", again)
    with pytest.raises(CheckpointInvalid, match="other encoders"):
        load_system(tmp_path)


def test_an_interrupted_stage_resumes_exactly(tmp_path):
    """Optimiser, averaged weights and random numbers: step by step as if nothing had happened."""

    def toy(interrupt_at=None):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 1)})

        def loss(step, rng):
            if step == interrupt_at:
                raise KeyboardInterrupt
            data = torch.from_numpy(rng.standard_normal((8, 4), dtype=np.float32)) + 0.1 * torch.randn(8, 4)
            return {"loss": (model["layer"](data) - data.sum(dim=1, keepdim=True)).square().mean()}

        config = dataclasses.replace(load_config("tiny"), save_every=4)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
        blank = Origin("c", "", "", "", "")
        return Stage("diffusion", config, 16, model, optimiser, loss, lambda: Image.new("RGB", (1, 1)), blank, 0.9)

    whole = run_stage(toy(), tmp_path / "whole")["layer"].weight
    with pytest.raises(KeyboardInterrupt):
        run_stage(toy(interrupt_at=6), tmp_path / "resumed")
    assert load_checkpoint(tmp_path / "resumed" / "diffusion.state.safetensors").step == 4
    assert torch.equal(run_stage(toy(), tmp_path / "resumed")["layer"].weight, whole)


def test_divergence_is_an_error_and_leaves_the_weights(tmp_path):
    weight = torch.nn.Linear(1, 1)
    before = weight.weight.detach().clone()
    model = torch.nn.ModuleDict({"layer": weight})
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    origin = Origin("c", "", "", "", "")

    def loss(step, rng):
        return {"loss": weight(torch.full((1, 1), float("inf"))).sum()}

    stage = Stage("pretrain", load_config("tiny"), 4, model, optimiser, loss, lambda: Image.new("RGB", (1, 1)), origin)
    with pytest.raises(TrainingDiverged, match="step 0"):
        run_stage(stage, tmp_path)
    assert torch.equal(weight.weight, before)
    assert not list(tmp_path.glob("*.safetensors"))


def test_finished_run_is_not_trained_again(trained):
    before = {p.name: p.stat().st_mtime_ns for p in trained.glob("*.safetensors")}
    process = train("all", trained)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert {p.name: p.stat().st_mtime_ns for p in trained.glob("*.safetensors")} == before


@pytest.mark.parametrize("damage", ["truncate", "foreign", "missing"])
def test_damaged_checkpoints_are_refused(trained, tmp_path, damage):
    for file in trained.glob("*.safetensors"):
        data = file.read_bytes()
        if file.name == "prior.safetensors":
            if damage == "missing":
                continue
            data = data[: len(data) // 2] if damage == "truncate" else b"\x02\0\0\0\0\0\0\0{}"
        (tmp_path / file.name).write_bytes(data)
    with pytest.raises(CheckpointInvalid, match="prior"):
        load_system(tmp_path)


def test_errors_have_a_code_and_leave_no_run(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "-m", "training", "pretrain", "--config", "tiny", "--corpus", str(empty)]
    result = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert result.returncode == CorpusInvalid.code
    assert "[61]" in result.stderr
    assert "Traceback" not in result.stderr


def test_crops_mirrors_and_windows_are_what_the_runtime_hears(tmp_path):
    pairs = load_pairs(CORPUS, "train", 32, tmp_path)
    rows = range(len(pairs))
    speech = pairs.speech(rows)
    assert speech.shape == (len(pairs), 96_000)
    assert torch.allclose(speech.square().mean(dim=1).sqrt(), torch.full((len(pairs),), 0.05), atol=0.01)
    assert torch.equal(speech, pairs.speech(rows))
    a, b = (pairs.speech(rows, np.random.default_rng(s)) for s in (0, 1))
    assert not torch.equal(a, b)
    runtime_hears = load_speech((pairs.clips[0, 0], 16_000))
    np.testing.assert_allclose(speech[0].numpy(), runtime_hears, atol=2e-3)
    faces = pairs.faces(rows)
    assert faces.shape == (len(pairs), 3, 32, 32)
    mirrored = pairs.faces([0] * 32, np.random.default_rng(0))
    same = [torch.equal(face, faces[0]) for face in mirrored]
    flipped = [torch.equal(face, faces[0].flip(2)) for face in mirrored]
    assert any(same)
    assert any(flipped)
    assert all(a or b for a, b in zip(same, flipped, strict=True))
    assert -1 <= faces.min() < 0 < faces.max() <= 1


def test_a_corpus_made_by_other_rules_is_another_corpus():
    corpus = read_corpus(CORPUS)
    keys = ("rule_version", "render_version", "analysis_version", "sources")
    others = [dataclasses.replace(corpus, info={**corpus.info, key: "another"}) for key in keys]
    assert len({fingerprint(one) for one in (corpus, *others)}) == 5
    elsewhere = dataclasses.replace(corpus, info={**corpus.info, "packages": {"numpy": "1"}})
    assert fingerprint(elsewhere) == fingerprint(corpus)


def test_table_of_the_prior_shrinks_as_faces_are_added():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4000, 4, 8, 8, generator=generator) + 1
    lines = convergence_table([(n, latents[:n].mean(dim=0)) for n in (100, 500, 2000, 4000)])
    distances = [float(line.split()[-1]) for line in lines[2:]]
    assert distances == sorted(distances, reverse=True)


def test_balanced_rows_are_half_women(tmp_path):
    pairs = load_pairs(CORPUS, "train", 32, tmp_path)
    assert reachable((2, 4, 8), pairs) == [2, 4, 6]
    assert reachable((2, 4), pairs) == [2, 4]
    rows = balanced(pairs, 4, seed=0)
    assert [pairs.identities[i].sex for i in rows].count("F") == 2
    assert set(rows) <= set(balanced(pairs, 6, seed=0))  # a larger count keeps the faces of a smaller one
