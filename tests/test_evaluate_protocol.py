"""What is measured, with painters and a judge whose answers are known."""

import csv
import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from conftest import CORPUS
from evaluation_factory import TRUTH, Painter, TableJudge, all_test, oracle
from PIL import Image
from voice_factory import speech_folder

from runtime.errors import CorpusInvalid, InvalidArgument
from training.corpus.build import fingerprint_speech
from training.corpus.pairing import assign_splits
from training.corpus.table import read_corpus
from training.corpus.voices import read_speakers
from training.evaluate import report
from training.evaluate.protocol import Evaluation, Result, test_voices
from training.evaluate.recordings import recordings

test_voices.__test__ = False


@pytest.fixture(scope="module")
def evaluation():
    return Evaluation(TableJudge(), all_test(), seeds=2, seed=5)


def values(evaluation, colour):
    return evaluation.row(Painter(colour), 4, 0.01).values


def test_a_perfect_painter_gets_everything_right(evaluation):
    found = values(evaluation, oracle)
    assert (found["sex"], found["age_within"], found["cosine"], found["angle"]) == (100, 100, 1, 0)
    assert found["age_mae"] < 0.5
    assert [found[f"r{k}"] for k in (1, 10)] == [100, 100]
    assert (found["l2"], found["l2_unit"], found["l1"], found["one_minus_cosine"], found["cosine_variance"]) == (0,) * 5
    assert (found["same_voice"], found["other_voice"]) == (1, 0)
    assert found["fid"] == pytest.approx(0, abs=0.2)


def test_a_painter_that_draws_one_face_is_at_chance(evaluation):
    found = values(evaluation, lambda *_: (255, 40, 15))  # a place that no identity has
    assert found["sex"] == 50
    assert [found[f"r{k}"] for k in (1, 5, 10)] == pytest.approx([10, 50, 100])
    assert (found["cosine"], found["angle"]) == pytest.approx((0, 90))
    assert (found["l1"], found["l2"]) == pytest.approx((2, np.sqrt(2)))
    assert (found["same_voice"], found["other_voice"]) == (1, 1)
    assert found["kid"] > 0


def test_a_painter_that_hears_no_voice_shows_it(evaluation):
    found = values(evaluation, lambda _, seed, *__: (0, 40, seed % 2))
    assert (found["same_voice"], found["other_voice"]) == pytest.approx((0, 0.5))  # no nearer than a stranger


def test_half_right_is_half(evaluation):
    found = values(evaluation, lambda number, seed, *_: oracle(number if seed % 2 else (number + 1) % 10))
    assert (found["sex"], found["cosine"], found["r1"]) == pytest.approx((50, 0.5, 50))
    assert found["cosine_variance"] == pytest.approx(0.25)
    assert found["angle"] == pytest.approx(45)


def test_every_voice_has_seeds_of_its_own_the_same_in_every_row(evaluation):
    painter = Painter(oracle)
    evaluation.row(painter, 1, 0.0)
    evaluation.row(painter, 4, 0.0)
    assert painter.calls == [(1, 0.0, list(range(5, 25))), (4, 0.0, list(range(5, 25)))]


def test_more_voices_than_fit_at_once_keep_their_order(evaluation, monkeypatch):
    monkeypatch.setattr("training.evaluate.protocol.VOICES_AT_ONCE", 3)
    painter = Painter(oracle, "in parts")
    assert evaluation.row(painter, 1, 0.0).values["r1"] == 100
    assert [len(seeds) for *_, seeds in painter.calls] == [6, 6, 6, 2]
    assert [seed for *_, seeds in painter.calls for seed in seeds] == list(range(5, 25))


def test_steps_and_weights_are_those_the_painter_offers(evaluation):
    painter = Painter(oracle, "offers")
    assert [(row.steps, row.prior_weight) for row in evaluation.steps_rows(painter)] == [(1, 0.01), (4, 0.01)]
    rows = evaluation.prior_rows(painter)
    assert [(row.steps, row.prior_weight) for row in rows] == [(4, 0.0), (4, 0.003), (4, 0.01), (4, 0.03)]
    assert len(painter.calls) == 5  # the default weight at the default steps is not painted twice
    painter.prior_weights = (0.01, 0.01)
    assert evaluation.prior_rows(painter) == []


def test_references_bound_what_painters_can_reach(evaluation):
    corpus = read_corpus(CORPUS)
    inverted = np.array([[[[255 * (one.sex == "F"), 20, 3]]] for one in corpus.identities], np.uint8)
    real, strangers, others = evaluation.reference_rows({"inverted": np.tile(inverted, (1, 16, 16, 1))})
    assert (real.arm, real.values["sex"], real.values["cosine"], real.values["r1"]) == ("real portraits", 100, 1, 100)
    assert real.values["age_mae"] == pytest.approx(0)
    assert real.values["kid"] is not None
    assert (strangers.values["cosine"], strangers.values["r1"]) == (0, 0)  # nobody gets their own
    assert strangers.values["kid"] is None
    assert (others.arm, others.values["sex"], others.steps) == ("inverted", 0, None)


def test_several_pictures_of_a_person_are_averaged():
    names = ("images/000000_0.jpg", "images/000001_0.jpg", "images/000003_0.jpg")
    evaluation = Evaluation(TableJudge(), all_test(images=names), seeds=1)
    real = evaluation.real
    np.testing.assert_allclose(real.mean[0][:5], [1 / 3, 1 / 3, 0, 1 / 3, 0])
    np.testing.assert_allclose(real.held[0][:5], [0, 1 / 2, 0, 1 / 2, 0])
    assert "other 2" in real.views


def test_few_voices_are_a_seeded_draw():
    corpus = all_test()
    chosen = [test_voices(corpus, 4, seed).identities for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len({one.id for one in chosen[0]}) == 4
    assert len(test_voices(corpus, 99, 0)) == len(test_voices(corpus, None, 0)) == 10
    assert len(test_voices(read_corpus(CORPUS), None, 0)) == 2


@pytest.mark.parametrize("options", [{"voices": 0}, {"seeds": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(InvalidArgument, match=r"seed|voices"):
        Evaluation(TableJudge(), all_test(), **options)


def test_a_corpus_without_test_voices_is_refused():
    corpus = read_corpus(CORPUS)
    with pytest.raises(CorpusInvalid, match="test"):
        Evaluation(TableJudge(), dataclasses.replace(corpus, identities=corpus.split("train")))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return speech_folder(tmp_path_factory.mktemp("recorded") / "speech")


def made_from(speech, **changes):
    info = {"sources": {"speech": fingerprint_speech(read_speakers(speech))}}
    return dataclasses.replace(read_corpus(CORPUS), info=info, **changes)


def test_recordings_are_those_of_unheard_speakers(speech, evaluation):
    voices = recordings(speech, made_from(speech))
    splits = assign_splits(read_speakers(speech))
    assert sorted(path.stem for path in voices.clips) == sorted(
        name for name, split in splits.items() if split == "test"
    )
    painter = Painter(lambda *_: (255, 40, 0))
    found = evaluation.row(painter, 1, 0.01, voices)
    assert found.values == {"sex": 50, "same_voice": 1, "other_voice": 1}
    assert (found.voices, found.n) == ("recordings", 2)


def test_recordings_of_another_corpus_are_refused(speech):
    for info in ({"sources": {"speech": "0" * 64}}, {}):
        with pytest.raises(CorpusInvalid, match="may have heard"):
            recordings(speech, dataclasses.replace(made_from(speech), info=info))
    test = next(name for name, split in assign_splits(read_speakers(speech)).items() if split == "test")
    heard = [dataclasses.replace(one, speaker=test) for one in read_corpus(CORPUS).split("train")]
    with pytest.raises(CorpusInvalid, match="test speakers"):
        recordings(speech, made_from(speech, identities=tuple(heard)))


FACTS = {
    "seed": 5, "seeds": 2, "voices": 10, "recordings": 0, "real_views": "the same picture, mirrored",
    "galleries": {"count": 1, "size": 10},
    "chance_percent": {str(k): min(10.0 * k, 100) for k in (1, 2, 5, 10, 20, 50)},
    "speakers": 7, "corpus": {"fingerprint": "ef" * 32, "command": "s2f-train corpus --seed 1"},
    "judge": {"name": "s2f-judge-1", "sha256": "cd" * 32, "accuracy": TRUTH},
    "arms": [{"name": "flat", "identity": "ab" * 32, "facts": Painter.facts}],
}  # fmt: skip


@pytest.fixture(scope="module")
def result(evaluation):
    painter = Painter(oracle, "flat")
    rows = (*evaluation.reference_rows({}), *evaluation.steps_rows(painter))
    return Result(rows, tuple(evaluation.prior_rows(painter)), FACTS)


def test_the_report_is_the_same_bytes_again(result, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    paths = report.write_report(result, tmp_path / "a")
    report.write_report(result, tmp_path / "b")
    assert {path.name for path in paths} == {
        "quality.md", "quality.csv", "quality.json", "steps.png", "prior.md", "prior.csv", "prior.png",
    }  # fmt: skip
    for path in paths:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        if path.suffix == ".png":
            assert min(Image.open(path).size) > 300


def test_every_table_says_how_well_the_judge_reads(result):
    text = report.quality_markdown(result) + report.prior_markdown(result)
    tables = [part for part in text.split("\n\n") if part.startswith("| arm")]
    captions = [
        before for before, part in zip(text.split("\n\n"), text.split("\n\n")[1:], strict=False) if part in tables
    ]
    assert len(tables) == 5
    assert all("99.5 % sex, age ± 3.2 years, 97.0 % within 10" in caption for caption in captions)
    assert "of 10 people; chance: R@1 10 %, R@2 20 %" in text
    assert "unit length" in text
    assert "ab" * 32 in text
    assert "| real portraits | – | – | 10 | 10 |" in text
    assert "| flat | 4 | 0.01 | 10 | 20 |" in text
    assert "recordings of 7 people" in text
    assert all(known in text for known in ("s2f-judge-1 (cdcdcdcdcdcd)", "corpus efefefefefef"))


def test_few_steps_are_compared_with_the_most(result):
    few, most = (row for row in result.rows if row.steps)
    worse = dataclasses.replace(few, values=few.values | {"kid": 6.0, "cosine": 0.45})
    best = dataclasses.replace(most, arm="best", steps=25, values=most.values | {"kid": 4.0, "cosine": 0.5})
    text = report.quality_markdown(dataclasses.replace(result, rows=(result.rows[0], worse, best)))
    table = text.split("## Against best with 25 steps")[1]
    assert "| flat | 1 | 0.01 | 10 | 20 | 50.0 | -10.0 |" in table
    assert "| best | 25 | 0.01 | 10 | 20 | 0.0 | 0.0 |" in table
    assert "real portraits" not in table


def test_csv_and_json_hold_the_same_numbers(result):
    rows = list(csv.DictReader(report.as_csv(result.rows, report.ALL).splitlines()))
    assert [row["arm"] for row in rows] == ["real portraits", "another's portrait", "flat", "flat"]
    assert float(rows[3]["R@1, %"]) == 100
    assert (rows[0]["steps"], rows[1]["FID"]) == ("", "")
    read = json.loads(report.as_json(result))
    assert read["seed"] == 5
    assert read["rows"][3]["values"]["r1"] == 100
    assert [row["prior_weight"] for row in read["prior"]] == [0.0, 0.003, 0.01, 0.03]


def test_without_a_sweep_there_is_no_report_of_one(result, tmp_path):
    report.write_report(dataclasses.replace(result, prior=()), tmp_path)
    assert not list(tmp_path.glob("prior*"))


def test_recordings_have_a_table_of_their_own(result):
    recorded = dataclasses.replace(result.rows[-1], voices="recordings", values={"sex": 50.0})
    text = report.quality_markdown(dataclasses.replace(result, rows=(*result.rows, recorded)))
    assert "## Real recordings" in text
    assert text.count("| flat | 4 |") == 4 + 1
