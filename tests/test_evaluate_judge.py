"""The judge: what it is, how it is trained and kept, and that the shipped one reads faces."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conftest import CORPUS
from PIL import Image

from runtime.errors import CheckpointInvalid, CorpusInvalid, InvalidArgument
from training.checkpoint import Origin
from training.corpus.table import read_corpus
from training.data import read_portrait
from training.evaluate import train_judge
from training.evaluate.judge import (
    FEATURES,
    SIZE,
    Judge,
    JudgeNetwork,
    as_input,
    attributes_of,
    load_judge,
    save_judge,
    shipped_judge,
)
from training.evaluate.train_judge import augmented, blurred, judge


@pytest.fixture(scope="module")
def corpus():
    return read_corpus(CORPUS)


@pytest.fixture(scope="module")
def renders(corpus):
    """uint8 [10, 128, 128, 3]."""
    return np.stack([read_portrait(corpus.image_paths(identity)[0], SIZE) for identity in corpus.identities])


@pytest.fixture
def blank():
    """A judge that knows nothing, of three attributes."""
    torch.manual_seed(0)
    scales = torch.tensor([40.0, 0.0, 1.0, 0.0]), torch.tensor([15.0, 1.0, 2.0, 1.0])
    return Judge(JudgeNetwork(3).eval(), ("a", "b", "c"), *scales, Origin("k", "", "data", "CC0", ""), {"seed": 0}, {})


@pytest.fixture(scope="module")
def briefly(tmp_path_factory):
    """The folder of a judge trained for a moment."""
    out = tmp_path_factory.mktemp("judge")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_judge, "BATCH", 8)
        judge(CORPUS, out, steps=30, seed=3)
    return out


def test_it_is_small():
    assert sum(weight.numel() for weight in JudgeNetwork(80).parameters()) < 1_000_000
    assert shipped_judge().stat().st_size < 2_000_000


def test_attributes_are_the_numbers_of_the_face(corpus):
    names, table = attributes_of(corpus.identities)
    assert table.shape == (10, 1 + len(names))
    assert {"stubble", "hair_r", "african", "weight", "nose/nose-hump"} <= set(names)
    assert not {"f0_hz", "rate", "breathiness", "face_seed", "gender"} & set(names)
    np.testing.assert_allclose(table[:, 0], [identity.age for identity in corpus.identities], rtol=1e-5)
    row = corpus.identities[3]
    assert table[3, 1 + names.index("nose/nose-hump")] == pytest.approx(row.face.sliders["nose/nose-hump"])


def test_a_judge_is_read_back_as_it_was_written(blank, tmp_path):
    save_judge(tmp_path / "judge.safetensors", blank)
    back = load_judge(tmp_path / "judge.safetensors")
    picture = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    a, b = blank.read(picture), back.read(picture)
    np.testing.assert_allclose(a.age, b.age, atol=0.1)
    np.testing.assert_allclose(a.features, b.features, atol=0.02)
    assert (back.attributes, back.origin, back.training) == (blank.attributes, blank.origin, blank.training)


def test_readings_have_units_and_one_row_per_portrait(blank):
    pictures = np.random.default_rng(0).integers(0, 256, (70, 20, 30, 3), dtype=np.uint8)
    readings = blank.read(pictures)
    assert len(readings) == 70
    assert readings.features.shape == (70, FEATURES)
    assert readings.attributes.shape == (70, 3)
    assert ((readings.male >= 0) & (readings.male <= 1)).all()
    _, raw = blank.network(as_input(pictures[:1]))
    assert readings.age[0] == pytest.approx(40 + 15 * raw[0, 1].item(), abs=1e-3)
    assert readings.attributes[0, 1] == pytest.approx(1 + 2 * raw[0, 3].item(), abs=1e-4)
    np.testing.assert_allclose(readings.features[69], blank.read(pictures[69:]).features[0], atol=1e-4)


@pytest.mark.parametrize(
    "pictures",
    [np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8)],
)
def test_what_is_no_portrait_is_refused(blank, pictures):
    with pytest.raises(InvalidArgument, match="uint8"):
        blank.read(pictures)


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "metadata", "network"])
def test_damaged_files_are_refused(blank, tmp_path, damage):
    path = tmp_path / "judge.safetensors"
    other = JudgeNetwork(5).eval() if damage == "network" else blank.network
    names = ("a",) if damage == "metadata" else blank.attributes
    save_judge(path, dataclasses.replace(blank, network=other, attributes=names))
    if damage == "missing":
        path.unlink()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    if damage == "foreign":
        path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointInvalid, match="judge"):
        load_judge(path)


def test_training_leaves_a_judge_that_says_what_it_is(briefly):
    made = load_judge(briefly / "judge.safetensors")
    assert made.training["seed"] == 3
    assert "--steps 30 --seed 3" in made.training["command"]
    assert str(briefly) not in made.training["command"]
    assert "CC0" in made.origin.licence
    assert "6 train" in made.origin.training_data
    assert made.accuracy["renders"] == 2
    assert 0 <= made.accuracy["sharp"]["sex_percent"] <= 100
    assert made.accuracy["blurred by 1 px"]["age_mae_years"] >= 0
    assert not list(briefly.glob("*.state.safetensors"))


def test_training_tells_the_sexes_it_has_seen(briefly, corpus, renders):
    made = load_judge(briefly / "judge.safetensors")
    train = [i for i, identity in enumerate(corpus.identities) if identity.split == "train"]
    assert [male > 0.5 for male in made.read(renders[train]).male] == [corpus.identities[i].sex == "M" for i in train]


def test_an_interrupted_training_goes_on(briefly, tmp_path, monkeypatch):
    monkeypatch.setattr(train_judge, "BATCH", 8)
    monkeypatch.setattr(train_judge, "SAVE_EVERY", 10)
    whole, drawn = train_judge.judge_loss, []

    def interrupted(*arguments):
        drawn.append(1)
        if len(drawn) == 15:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(train_judge, "judge_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge(CORPUS, tmp_path, steps=30, seed=3)
    judge(CORPUS, tmp_path, steps=30, seed=3)
    assert len(drawn) == 15 + 20
    first, second = (load_judge(folder / "judge.safetensors").network.state_dict() for folder in (briefly, tmp_path))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-2, atol=1e-2, msg=name)


def test_a_corpus_of_one_sex_cannot_make_a_judge(tmp_path, monkeypatch, corpus):
    women = tuple(identity for identity in corpus.identities if identity.sex == "F")
    monkeypatch.setattr(train_judge, "read_corpus", lambda _: dataclasses.replace(corpus, identities=women))
    with pytest.raises(CorpusInvalid, match="women and men"):
        judge(CORPUS, tmp_path, steps=1)


@pytest.mark.parametrize("options", [{"steps": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(InvalidArgument, match="steps is"):
        judge(CORPUS, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_blur_has_the_width_asked_for_and_changes_no_plain_picture():
    point = torch.zeros(1, 3, 41, 41)
    point[:, :, 20, 20] = 1
    spread = blurred(point, 1.5)[0, 0]
    place = torch.arange(41.0) - 20
    assert spread.sum() == pytest.approx(1.0, abs=1e-5)
    assert (spread.sum(dim=0) * place**2).sum() == pytest.approx(1.5**2, rel=0.03)
    plain = torch.full((2, 3, 16, 16), 0.25)
    torch.testing.assert_close(blurred(plain, 1.0), plain)


def test_augmented_portraits_are_the_same_faces_seen_otherwise(renders):
    rng = np.random.default_rng(0)
    many = augmented(np.repeat(renders[:1], 64, axis=0), rng)
    assert many.shape == (64, 3, SIZE, SIZE)
    assert -1 <= many.min() < many.max() <= 1
    original = as_input(renders[:1])
    assert len({tuple(one.flatten()[:50].tolist()) for one in many}) == 64
    middle = (slice(None), slice(None), slice(32, 96), slice(32, 96))
    nearest = torch.minimum((many - original)[middle].abs().mean(dim=(1, 2, 3)),
                            (many.flip(3) - original)[middle].abs().mean(dim=(1, 2, 3)))  # fmt: skip
    assert nearest.median() < 0.3
    assert nearest.max() < 0.5


def test_the_shipped_judge_says_how_well_it_reads():
    shipped = load_judge()
    assert "CC0" in shipped.origin.licence
    assert "synthetic" in shipped.origin.training_data.lower()
    assert shipped.accuracy["renders"] >= 300
    for sight in ("sharp", "blurred by 1 px"):
        assert shipped.accuracy[sight]["sex_percent"] >= 99
        assert shipped.accuracy[sight]["age_mae_years"] < 5


def test_the_shipped_judge_reads_renders_it_has_not_seen(corpus, renders):
    """The fixture's heads are of 64 px: other people, and soft."""
    shipped = load_judge()
    readings = shipped.read(renders)
    assert (
        sum((male > 0.5) == (one.sex == "M") for male, one in zip(readings.male, corpus.identities, strict=True)) >= 9
    )
    ages = np.array([identity.age for identity in corpus.identities])
    assert np.abs(readings.age - ages).mean() < 8
    mirrored = shipped.read(renders[:, :, ::-1])
    similar = np.corrcoef(readings.features)[~np.eye(10, dtype=bool)].mean()
    same = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(readings.features, mirrored.features, strict=True)])
    assert same > 0.8
    assert similar < 0.3


def test_the_size_of_a_portrait_matters_little(renders):
    shipped = load_judge()
    larger = np.stack(
        [np.asarray(Image.fromarray(one).resize((256, 256), Image.Resampling.BICUBIC)) for one in renders]
    )
    a, b = shipped.read(renders), shipped.read(larger)
    assert np.abs(a.age - b.age).mean() < 2
    assert ((a.male > 0.5) == (b.male > 0.5)).all()
