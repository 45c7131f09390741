"""The alignment stage: what its loss asks for, and that a run takes the aligned encoder and no other."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from conftest import CORPUS

from runtime.errors import CheckpointInvalid
from training.align import People, align_loss, attributes_line, attributes_of
from training.checkpoint import load_checkpoint, load_pretrained, load_stage, load_system, save_checkpoint
from training.config import load_config
from training.data import load_pairs
from training.models.speech import build_speech_encoder
from training.pretrain import LogScale, retrieval_line


@pytest.fixture
def model():
    config = load_config("tiny")
    torch.manual_seed(0)
    parts = {"speech": build_speech_encoder(config), "temperature": LogScale(), "attributes": torch.nn.Linear(32, 2)}
    return config, torch.nn.ModuleDict(parts).eval()


def test_loss_is_low_where_the_voice_lies_at_its_own_face(model):
    config, parts = model
    pcm = 0.1 * torch.randn(3, 96_000)
    with torch.no_grad():
        own = parts["speech"](pcm)
        people = People(torch.cat([own, -own]), torch.zeros(6, 2))
        right = align_loss(config, parts, pcm, people, torch.arange(3))["identity"]
        wrong = align_loss(config, parts, pcm, people, torch.arange(3) + 3)["identity"]
    assert right < wrong - 1


def test_attributes_are_asked_of_the_embedding(model):
    config, parts = model
    people = People(torch.nn.functional.normalize(torch.randn(4, 32), dim=1), torch.tensor([[1.0, 2.0]] * 4))
    values = align_loss(config, parts, 0.1 * torch.randn(2, 96_000), people, torch.arange(2))
    torch.testing.assert_close(
        values["loss"], values["identity"] + config.align.attribute_weight * values["attributes"]
    )
    values["attributes"].backward()
    assert parts["speech"].head[-1].weight.grad.abs().sum() > 0


def test_attributes_of_the_corpus(tmp_path):
    pairs = load_pairs(CORPUS, "train", 32, tmp_path)
    got = attributes_of(pairs)
    assert [bool(x) for x in got[:, 0]] == [identity.sex == "M" for identity in pairs.identities]
    assert [identity.age for identity in pairs.identities] == pytest.approx((got[:, 1] * 16 + 45).tolist(), abs=1e-3)


def test_retrieval_line_counts_who_is_found():
    faces = torch.eye(20)
    assert retrieval_line(faces, faces) == "R@1 100.0 %, R@10 100.0 % (gallery 20, chance 5.0 and 50.0 %)"
    assert retrieval_line(faces.roll(1, 0), faces).startswith("R@1 0.0 %")
    assert retrieval_line(torch.ones(20, 20), faces).startswith("R@1 5.0 %, R@10 50.0 %"), "tells nobody apart: chance"


def test_attributes_line_reads_what_the_layer_says(tmp_path):
    pairs = load_pairs(CORPUS, "train", 32, tmp_path)
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2) / 2**0.5)
        layer.bias.copy_(torch.tensor([-0.5, 0.0]))
    wanted = attributes_of(pairs)
    assert attributes_line(layer, wanted, pairs).startswith("sex 100.0 %, age ± 0.0 years, 100.0 % within 10")
    wrong = wanted * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 11 / 16])
    assert attributes_line(layer, wrong, pairs).startswith("sex 0.0 %, age ± 11.0 years, 0.0 % within 10")


def test_a_run_hears_with_its_aligned_encoder(trained, tmp_path):
    for file in trained.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    aligned = load_checkpoint(tmp_path / "align.safetensors")
    hears = load_system(tmp_path).speech_encoder.state_dict()
    assert all(torch.equal(hears[name], value) for name, value in aligned.group("speech").items())
    before = load_pretrained(tmp_path, aligned=False)[1].state_dict()
    assert any(not torch.equal(before[name], value) for name, value in aligned.group("speech").items())
    other = {name: value + 1 for name, value in aligned.tensors.items()}
    save_checkpoint(tmp_path / "align.safetensors", dataclasses.replace(aligned, tensors=other))
    with pytest.raises(CheckpointInvalid, match="other encoders"):
        load_system(tmp_path)
    load_stage(tmp_path, "decoder")  # builds on faces alone


@pytest.mark.parametrize("stage", ["align", "decoder", "shortcut"])
def test_a_stage_of_the_configuration_is_not_left_out_in_silence(trained, tmp_path, stage):
    for file in trained.glob("*.safetensors"):
        if file.stem != stage:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointInvalid, match=f"{stage}.safetensors|other encoders"):
        load_system(tmp_path)
    if stage == "shortcut":
        assert load_system(tmp_path, "diffusion").arm == "diffusion"


def test_late_stages_may_be_trained_again_with_other_settings(trained, tmp_path):
    for file in trained.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())

    def again(stage, **settings):
        saved = load_checkpoint(tmp_path / f"{stage}.safetensors")
        changed = dataclasses.replace(getattr(saved.config, stage), **settings)
        config = dataclasses.replace(saved.config, **{stage: changed})
        save_checkpoint(tmp_path / f"{stage}.safetensors", dataclasses.replace(saved, config=config))

    again("shortcut", guidance=1.25)
    again("decoder", adversarial_weight=0.5)
    system = load_system(tmp_path)
    assert (system.guidance, system.config.decoder.adversarial_weight) == (1.25, 0.5)  # what the card then says
    assert load_system(tmp_path, "diffusion").config.decoder.adversarial_weight == 0.5
    again("decoder", widths=(8, 8, 8))
    with pytest.raises(CheckpointInvalid, match="do not fit"):
        load_system(tmp_path)


def test_another_number_of_step_sizes_is_another_network(trained):
    config = load_checkpoint(trained / "diffusion.safetensors").config
    other = dataclasses.replace(
        config, shortcut=dataclasses.replace(config.shortcut, levels=config.shortcut.levels + 1)
    )
    load_stage(trained, "prior", other)
    with pytest.raises(CheckpointInvalid, match="another configuration"):
        load_stage(trained, "diffusion", other)
