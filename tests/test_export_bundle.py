"""From a system to a folder: parity, manifest, model card, atomic writing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import runtime
from export import writer
from export.options import ExportOptions
from export.parity import reference_image, reference_network, speech_like
from export.pipeline import Exported, export_system, round_weights
from runtime.audio import load_speech
from runtime.bundle import (
    MANIFEST,
    STAGES,
    GuidanceSpec,
    PriorSpec,
    manifest_to_json,
    parse_manifest,
    read_bundle,
)
from runtime.errors import (
    BundleTampered,
    InvalidArgument,
    OutputUnwritable,
)
from runtime.noise import seeded_noise
from tests.toy_system import CHANNELS, SIZE, TOKENS, toy_system
from training.arms import GUIDANCE
from training.corpus.build import STATEMENT
from training.corpus.licences import licences_of
from training.corpus.voices import Speaker
from training.sampler import sample
from training.sampling import shortcut_table

OPTIONS = ExportOptions(steps=(2, 4), default_steps=4)
LATENT_CLIP = 4.0  # the configurations' default


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    return export_system(toy_system(), tmp_path_factory.mktemp("export") / "toy", OPTIONS)


@pytest.fixture(scope="module")
def shortcut(tmp_path_factory) -> Exported:
    return export_system(toy_system(arm="shortcut"), tmp_path_factory.mktemp("export") / "leaping", ExportOptions())


def test_runtime_reads_what_export_wrote(exported):
    bundle = read_bundle(exported.path)
    assert bundle.identity == exported.identity
    assert bundle.manifest == exported.manifest
    assert parse_manifest(manifest_to_json(bundle.manifest)) == bundle.manifest
    assert sorted(p.name for p in exported.path.iterdir()) == sorted(
        [MANIFEST, "MODEL_CARD.md", *(f"{stage}.onnx" for stage in STAGES)]
    )


def test_runtime_generates_from_it(exported):
    """The runtime's own loop gives the portrait that training's modules give for the same noise."""
    pcm = speech_like(4, 1)[0]
    with runtime.load(exported.path, device="cpu", threads=1) as pipe:
        portrait = pipe.generate((pcm, 16000), steps=4, seed=11, guidance=1.5)
    expected = drawn_by_training(round_weights(toy_system()), pcm, steps=4, solver="dpmpp_2m", guidance=1.5, weight=0)
    assert portrait.image.dtype == np.uint8
    assert np.abs(portrait.image.astype(int) - expected.astype(int)).max() <= 1


def drawn_by_training(system, pcm, *, steps, solver, guidance, weight):
    """The portrait uint8 [H, W, 3] of seed 11 as training samples it; `weight`: of the prior in the source."""
    window = load_speech((pcm, 16000))
    with torch.no_grad():
        network = reference_network(system, system.speech_encoder(torch.from_numpy(window[None])), guidance)
        noise = torch.from_numpy(seeded_noise(11, (CHANNELS, SIZE, SIZE)))[None]
        x = sample(network, noise + weight * system.prior, system.table(steps, solver), LATENT_CLIP)
        return reference_image(system, x)[0].numpy()


@pytest.mark.parametrize("weight", [0.0, 0.9])
def test_runtime_generates_from_the_shortcut_arm(shortcut, weight):
    pcm = speech_like(5, 1)[0]
    with runtime.load(shortcut.path, device="cpu", threads=1) as pipe:
        portrait = pipe.generate((pcm, 16000), steps=4, seed=11, prior_weight=weight)
        with pytest.raises(InvalidArgument, match=f"folds guidance {GUIDANCE} into its graphs"):
            pipe.generate((pcm, 16000), guidance=1.0)
    system = round_weights(toy_system(arm="shortcut"))
    expected = drawn_by_training(system, pcm, steps=4, solver="shortcut", guidance=GUIDANCE, weight=weight)
    assert np.abs(portrait.image.astype(int) - expected.astype(int)).max() <= 1
    assert (portrait.guidance, portrait.prior_weight) == (GUIDANCE, weight)


def test_manifest_describes_the_shortcut_arm(shortcut):
    manifest = shortcut.manifest
    assert manifest.prior == PriorSpec("add", 0.3, 0.0, 0.9, "start")
    assert manifest.guidance == GuidanceSpec(GUIDANCE, GUIDANCE, GUIDANCE)
    assert {n: table.solver for n, table in manifest.step_tables.items()} == dict.fromkeys((1, 2, 4, 8), "shortcut")
    assert manifest.default_steps == 4
    tensors = manifest.stages["unet"]
    assert [t.name for t in tensors.inputs] == ["latent", "condition", "step", "prior_weight"]
    assert [t.name for t in tensors.outputs] == ["latent_next"]
    assert read_bundle(shortcut.path).manifest == manifest


def test_card_of_the_shortcut_arm(shortcut):
    text = (shortcut.path / "MODEL_CARD.md").read_text("utf-8")
    for words in (
        "- arm: shortcut, a rectified flow in few steps",
        f"- guidance: {GUIDANCE}, folded into the network",
        "- prior: add, weight 0.3, or 0 to 0.9 by call; in the noise that sampling starts from",
        "--arm shortcut --steps 1,2,4,8 --default-steps 4 --solver shortcut --store float16 --licence",
        "Whole chain, 1, 2, 4, 8 steps",
    ):
        assert words in text


UNEVEN = {4: (0.5, 0.25, 0.125, 0.125)}


@pytest.mark.parametrize(
    ("arm", "schedules", "times"),
    [
        ("shortcut", UNEVEN, None),
        ("diffusion", {4: (2.0,)}, (999.0, 561.0, 249.0, 61.0)),  # 1000·(1 − i/4)² − 1, rounded to even
    ],
)
def test_searched_schedules_are_what_the_runtime_runs(tmp_path, arm, schedules, times):
    system = toy_system(arm=arm, schedules=schedules)
    solver = "shortcut" if arm == "shortcut" else "dpmpp_2m"
    result = export_system(system, tmp_path / "b", ExportOptions(steps=(2, 4), default_steps=4))
    assert "; timesteps searched for 4 steps" in (result.path / "MODEL_CARD.md").read_text("utf-8")
    found = result.manifest.step_tables[4].timesteps
    assert found == (times or tuple(shortcut_table(system.alphas_cumprod, UNEVEN[4]).timesteps.tolist()))
    pcm = speech_like(6, 1)[0]
    with runtime.load(result.path, device="cpu", threads=1) as pipe:
        image = pipe.generate((pcm, 16000), steps=4, seed=11, guidance=GUIDANCE).image
    weight = system.prior_weight if arm == "shortcut" else 0
    stored = round_weights(system)
    expected, even = (
        drawn_by_training(one, pcm, steps=4, solver=solver, guidance=GUIDANCE, weight=weight)
        for one in (stored, dataclasses.replace(stored, schedules={}))
    )
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1
    assert np.abs(image.astype(int) - even.astype(int)).max() > 3


def test_a_search_for_one_solver_says_nothing_of_another():
    system = toy_system(schedules={4: (2.0,)})
    assert system.table(4, "ddim").timesteps.tolist() == [999.0, 749.0, 499.0, 249.0]
    assert system.table(4, "dpmpp_2m").timesteps.tolist() == [999.0, 561.0, 249.0, 61.0]


def test_no_prior_has_no_weight(tmp_path):
    result = export_system(toy_system(mode="none"), tmp_path / "b", OPTIONS)
    assert result.manifest.prior == PriorSpec("none", 0.0, 0.0, 0.0, "every")


def test_a_fixed_prior_weight_is_folded_in(tmp_path):
    system = toy_system(arm="shortcut", weights=(0.3, 0.3))
    result = export_system(system, tmp_path / "b", ExportOptions(steps=(1, 2)))
    assert result.manifest.prior == PriorSpec("add", 0.3, 0.3, 0.3, "start")
    assert [t.name for t in result.manifest.stages["unet"].inputs] == ["latent", "condition", "step"]
    assert result.manifest.default_steps == 2
    with runtime.load(result.path, device="cpu", threads=1) as pipe:
        image = pipe.generate((speech_like(5, 1)[0], 16000), steps=2, seed=11).image
    expected = drawn_by_training(
        round_weights(system), speech_like(5, 1)[0], steps=2, solver="shortcut", guidance=GUIDANCE, weight=0.3
    )
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1


def test_manifest_describes_the_system(exported):
    manifest = exported.manifest
    assert (manifest.latent.channels, manifest.latent.height, manifest.image.width) == (CHANNELS, SIZE, 4 * SIZE)
    assert manifest.condition.tokens == TOKENS
    assert manifest.prior == PriorSpec("add", 0.3, 0.3, 0.3, "every")
    assert manifest.guidance == GuidanceSpec(GUIDANCE, 0.0, 10.0)
    assert [t.name for t in manifest.stages["unet"].inputs] == ["latent", "history", "condition", "step", "guidance"]
    assert {n: (t.first_row, t.timesteps) for n, t in manifest.step_tables.items()} == {
        2: (0, (999.0, 499.0)),
        4: (2, (999.0, 749.0, 499.0, 249.0)),
    }
    assert manifest.default_steps == 4


def test_parity_is_within_the_contract(exported):
    for row in exported.parity.stages:
        assert row.cases >= 16
        assert row.tolerance == (1 if row.stage == "decoder" else 1e-4), "v-prediction loosens nothing"
        assert row.max_abs <= row.tolerance
    assert exported.parity.chain_max_levels <= 2


def test_another_prior_mode_and_solver(tmp_path):
    options = dataclasses.replace(OPTIONS, solver="ddim", store="float32")
    result = export_system(toy_system(mode="interpolate"), tmp_path / "b", options)
    assert result.manifest.prior.mode == "interpolate"
    assert result.manifest.table(2).solver == "ddim"


def test_export_is_reproducible_and_leaves_the_system_alone(exported, tmp_path):
    system = toy_system()
    before = {k: v.clone() for k, v in system.denoiser.state_dict().items()}
    assert export_system(system, tmp_path / "b", OPTIONS).identity == exported.identity
    assert all(torch.equal(before[k], v) for k, v in system.denoiser.state_dict().items())


def test_rounded_weights_are_what_float16_holds():
    system = toy_system()
    with torch.no_grad():
        system.denoiser.project.weight[0, 0] = 1e6
    rounded = round_weights(system)
    assert torch.equal(rounded.denoiser.project.weight, system.denoiser.project.weight), "beyond float16: left alone"
    weight = rounded.face_decoder.layers[0].weight
    assert torch.equal(weight, weight.half().float())
    assert not torch.equal(weight, system.face_decoder.layers[0].weight)


def test_float32_store_is_larger_and_drifts_nothing(exported, tmp_path):
    wide = export_system(toy_system(), tmp_path / "b", dataclasses.replace(OPTIONS, store="float32"))
    assert wide.manifest.stages["unet"].size > 1.5 * exported.manifest.stages["unet"].size
    assert "move by 0 grey levels" in (wide.path / "MODEL_CARD.md").read_text("utf-8")


def test_model_card_says_what_must_be_said(exported):
    text = (exported.path / "MODEL_CARD.md").read_text("utf-8")
    for words in (
        "A voice does not determine a face",
        "Not for identification",
        "Not for surveillance",
        "| encoder | 16 |",
        "feature loss used in pre-training: toy-loss",
        "Training seed 0",
    ):
        assert words in text
    assert all(stage.sha256 in text for stage in exported.manifest.stages.values())


def test_model_card_separates_data_and_licences(exported):
    text = (exported.path / "MODEL_CARD.md").read_text("utf-8")
    assert "Random numbers." in section(text, "Training data")
    licences = section(text, "Licences and attribution")
    assert "weights in this bundle: Apache-2.0." in licences
    assert "Numbers: from nobody, CC0." in licences
    assert exported.manifest.licence == "Apache-2.0 for the weights; sources: Numbers: from nobody, CC0."


def test_model_card_gives_every_command(exported):
    commands = section((exported.path / "MODEL_CARD.md").read_text("utf-8"), "How it was made").split("```")[1]
    assert commands.strip().splitlines() == [
        "s2f-train corpus --makehuman MAKEHUMAN --speech SPEECH --out CORPUS --identities 7 --seed 3 --size 32",
        "s2f-train all --config toy --corpus CORPUS --out RUN_DIR",
        "s2f-export RUN_DIR -o BUNDLE --name toy --arm diffusion --steps 2,4 --default-steps 4 --solver dpmpp_2m "
        f"--store float16 --guidance {GUIDANCE} --licence Apache-2.0",
    ]


def section(card, heading):
    """The text of a card under a heading."""
    return card.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_statements_of_real_size_fit_the_manifest(exported, tmp_path):
    """The longest licence text that the corpus builder gives, and its statement with room for numbers."""
    speakers = [Speaker(str(i), "F", tmp_path, f"{i}" + 90 * "x", "LibriSpeech" if i else "") for i in range(2)]
    speakers += [Speaker(str(i), "M", tmp_path, f"{i}" + 90 * "x") for i in range(12)]
    sources = " ".join(f"{key.capitalize()}: {text}" for key, text in licences_of(speakers).items())
    data = f"{STATEMENT} {'Identities and the command. ' * 12}"
    assert len(sources) > 600
    assert len(data) > 500
    licence = f"Apache-2.0 for the weights; sources: {sources}"
    long = dataclasses.replace(exported.manifest, licence=licence, training_data=data)
    assert parse_manifest(manifest_to_json(long)) == long


def test_existing_folder_is_refused_and_kept(exported):
    before = (exported.path / MANIFEST).read_bytes()
    with pytest.raises(OutputUnwritable, match="--force"):
        export_system(toy_system(), exported.path, OPTIONS)
    assert (exported.path / MANIFEST).read_bytes() == before


def test_force_replaces_a_bundle_but_nothing_else(exported, tmp_path):
    files = {p.name: p.read_bytes() for p in exported.path.iterdir() if p.name != MANIFEST}
    target = tmp_path / "b"
    writer.write_bundle(target, exported.manifest, files)
    assert writer.write_bundle(target, exported.manifest, files, force=True) == exported.identity
    other = tmp_path / "photos"
    other.mkdir()
    (other / "me.png").write_bytes(b"x")
    with pytest.raises(OutputUnwritable, match="not a bundle"):
        writer.write_bundle(other, exported.manifest, files, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "photos"]


def test_a_broken_bundle_is_never_put_in_place(exported, tmp_path):
    files = {p.name: p.read_bytes() for p in exported.path.iterdir() if p.name != MANIFEST}
    files["unet.onnx"] = files["unet.onnx"][:-1] + b"\0"
    with pytest.raises(BundleTampered):
        writer.write_bundle(tmp_path / "b", exported.manifest, files)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_disk_leaves_the_old_bundle(exported, tmp_path, monkeypatch):
    files = {p.name: p.read_bytes() for p in exported.path.iterdir() if p.name != MANIFEST}
    target = tmp_path / "b"
    writer.write_bundle(target, exported.manifest, files)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_write", full)
    with pytest.raises(OutputUnwritable, match="No space left"):
        writer.write_bundle(target, exported.manifest, files, force=True)
    assert read_bundle(target).identity == exported.identity
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
