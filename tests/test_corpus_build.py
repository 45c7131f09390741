"""The builder: the same bytes however it is run, whole or in pieces, and clear refusals."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

pytest.importorskip("pyworld", reason="building a corpus needs the train extra")

import soundfile
from PIL import Image
from voice_factory import DyingWorker, FailingRenderer, FlatRenderer, speech_folder

from runtime.errors import CorpusInvalid, InvalidArgument, OutputUnwritable
from training.corpus import attributes, pairing, parallel, voices
from training.corpus.build import build_corpus
from training.corpus.sheet import contact_sheet, describe, save_contact_sheet
from training.corpus.table import from_row, read_corpus, to_row

COUNT = 6


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> tuple[Path, Path]:
    """A MakeHuman folder in name only, and six invented speakers."""
    root = tmp_path_factory.mktemp("sources")
    (root / "makehuman").mkdir()
    return root / "makehuman", speech_folder(root / "speech")


def build(sources, out, *, warm=True, **options):
    """A small corpus; `warm`: take over the voices the first build has analysed, which is most of the work."""
    kept = sources[1].parent / "kept"
    if warm and kept.is_dir() and not out.exists():
        shutil.copytree(kept, out / "cache" / "voices")
    options = {"identities": COUNT, "size": 32, "workers": 1, "renderer": FlatRenderer, "progress": False} | options
    return build_corpus(*sources, out, options.pop("identities"), **options)


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    corpus = build(sources, tmp_path_factory.mktemp("corpus") / "whole")
    shutil.copytree(corpus.root / "cache" / "voices", sources[1].parent / "kept")
    return corpus


def digest(root: Path) -> dict[str, str]:
    """sha256 of everything a corpus consists of (not its cache)."""
    files = [path for path in root.rglob("*") if path.is_file() and "cache" not in path.parts]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_is_on_disk_is_what_the_table_says(built):
    assert [identity.id for identity in built.identities] == [f"{number:06d}" for number in range(COUNT)]
    for identity in built.identities:
        (image,), (clip,) = built.image_paths(identity), built.clip_paths(identity)
        with Image.open(image) as picture:
            assert picture.size == (32, 32)
        info = soundfile.info(clip)
        assert (info.samplerate, info.frames, info.channels, info.subtype) == (16_000, 112_000, 1, "PCM_16")
    assert {identity.split for identity in built.identities} == {"train", "val", "test"}
    assert "CC0 1.0" in built.info["licences"]["voices"]
    assert "LibriSpeech" not in built.info["licences"]["voices"]
    assert built.info["complete"] is True
    assert "synthetic world" in built.info["statement"]


def test_no_speaker_is_in_two_splits(built):
    heard = {name: {identity.speaker for identity in built.split(name)} for name in ("train", "val", "test")}
    assert not heard["train"] & heard["val"]
    assert not heard["train"] & heard["test"]
    assert not heard["val"] & heard["test"]


def test_two_processes_make_the_same_bytes(sources, built, tmp_path):
    assert digest(build(sources, tmp_path / "two", workers=2).root) == digest(built.root)


def test_a_broken_off_build_is_continued(sources, built, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(sources, tmp_path / "a", renderer=FailingRenderer)
    assert len(list((tmp_path / "a" / "parts").iterdir())) == 3
    with pytest.raises(CorpusInvalid, match="did not finish"):
        read_corpus(tmp_path / "a")
    kept = (tmp_path / "a" / "images" / "000000_0.jpg").stat().st_mtime_ns
    assert digest(build(sources, tmp_path / "a").root) == digest(built.root)
    assert (tmp_path / "a" / "images" / "000000_0.jpg").stat().st_mtime_ns == kept


@pytest.mark.usefixtures("built")
def test_worker_processes_end_with_a_killed_builder(sources, tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[4:]\n"
        "from voice_factory import SlowRenderer\n"
        "from training.corpus.build import build_corpus\n"
        "if __name__ == '__main__':\n"
        "    build_corpus(*sys.argv[1:4], 6, size=32, workers=2, renderer=SlowRenderer, progress=False)\n"
    )
    script = tmp_path / "builder.py"
    script.write_text(code, encoding="utf-8")
    here = Path(__file__).parent
    out = tmp_path / "a"
    shutil.copytree(sources[1].parent / "kept", out / "cache" / "voices")
    places = {"S2F_TEST_WORKERS": str(tmp_path / "workers")}
    builder = subprocess.Popen([sys.executable, script, *sources, out, here, here.parent], env=os.environ | places)
    try:
        workers = wait_for(lambda: {int(path.name) for path in (tmp_path / "workers").glob("*")}, 2)
    finally:
        builder.kill()
        builder.wait()
    assert builder.pid not in workers
    assert not wait_for(lambda: {pid for pid in workers if is_running(pid)}, 0)


def test_a_killed_worker_process_is_an_error_with_a_cure():
    items = range(4 * 2 * parallel.QUEUED_PER_PROCESS)  # more than are queued at first: submitting goes on after it
    with parallel.processes(2, DyingWorker) as run_all, pytest.raises(CorpusInvalid, match="fewer --workers"):
        list(run_all("work", items))


def test_a_pool_found_broken_when_work_is_handed_in_is_the_same_error(monkeypatch):
    def refuse(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(parallel.ProcessPoolExecutor, "submit", refuse)
    with parallel.processes(2, DyingWorker) as run_all, pytest.raises(CorpusInvalid, match="fewer --workers"):
        list(run_all("work", [1]))


def wait_for(look, count: int, seconds: float = 60.0) -> set[int]:
    """What `look` sees once it has `count` members, or at the end of the time."""
    end = time.monotonic() + seconds
    while len(look()) != count and time.monotonic() < end:
        time.sleep(0.1)
    return look()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.is_file() or status.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"


def test_a_lost_file_is_made_again_and_a_corpus_can_grow(sources, built, tmp_path):
    small = build(sources, tmp_path / "a", identities=3)
    assert len(small.identities) == 3
    small.clip_paths(small.identities[1])[0].unlink()
    assert digest(build(sources, tmp_path / "a").root) == digest(built.root)


def test_one_split_alone_has_the_bytes_it_has_in_the_whole(sources, built, tmp_path):
    alone = build(sources, tmp_path / "a", only="test")
    assert alone.identities == built.split("test")
    assert len(alone.identities) == 2
    whole, part = digest(built.root), digest(alone.root)
    assert {path for path in part if whole.get(path) != part[path]} == {"corpus.json", "table.csv"}
    assert alone.info["arguments"] == {**built.info["arguments"], "only": "test"}
    assert alone.info["identities"] == built.info["identities"] == COUNT


def test_one_split_alone_is_continued_and_grows_but_never_becomes_another(sources, built, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(sources, tmp_path / "a", only="train", portraits=2, renderer=FailingRenderer)
    assert len(list((tmp_path / "a" / "parts").iterdir())) == 1
    assert len(build(sources, tmp_path / "a", only="train", portraits=2).identities) == 2
    assert len(build(sources, tmp_path / "a", only="train", portraits=2, identities=2 * COUNT).identities) == 4
    for other in (None, "val"):
        with pytest.raises(CorpusInvalid, match="other arguments"):
            build(sources, tmp_path / "a", only=other, portraits=2)
    with pytest.raises(CorpusInvalid, match="other arguments"):
        build(sources, built.root, only="test")


def test_an_unknown_or_empty_split_is_refused(sources, tmp_path):
    with pytest.raises(InvalidArgument, match="only"):
        build(sources, tmp_path / "a", warm=False, only="dev")
    with pytest.raises(InvalidArgument, match="more identities"):  # the first two of seed 0 are both test voices
        build(sources, tmp_path / "a", warm=False, only="train", identities=2)
    assert not (tmp_path / "a").exists()


def test_another_seed_is_another_corpus(sources, built, tmp_path):
    other = build(sources, tmp_path / "a", seed=1)
    assert [identity.age for identity in other.identities] != [identity.age for identity in built.identities]


def test_more_portraits_and_clips_belong_to_the_same_person(sources, built, tmp_path):
    corpus = build(sources, tmp_path / "a", identities=2, portraits=2, clips=2)
    identity = corpus.identities[0]
    assert identity.face == built.identities[0].face
    first, second = (path.read_bytes() for path in corpus.clip_paths(identity))
    assert first != second
    first, second = (path.read_bytes() for path in corpus.image_paths(identity))
    assert first != second


def test_a_row_survives_the_table(built):
    for identity in built.identities:
        assert from_row(to_row(identity)) == identity


def test_a_folder_of_another_corpus_is_refused(sources, built):
    before = digest(built.root)
    with pytest.raises(CorpusInvalid, match="other arguments"):
        build(sources, built.root, seed=5)
    assert digest(built.root) == before


VERSIONS = {"RULE_VERSION": pairing, "RENDER_VERSION": attributes, "ANALYSIS_VERSION": voices}


@pytest.mark.parametrize("name", VERSIONS)
def test_a_corpus_of_another_version_is_not_continued(sources, built, tmp_path, monkeypatch, name):
    root = Path(shutil.copytree(built.root, tmp_path / "a"))
    before = digest(root)
    monkeypatch.setattr(VERSIONS[name], name, 99)
    with pytest.raises(CorpusInvalid, match=f"other {name.lower().replace('_', ' ')}"):
        build(sources, root)
    assert digest(root) == before


def test_a_corpus_without_version_numbers_is_continued_as_version_one(sources, built, tmp_path, monkeypatch):
    for name, module in VERSIONS.items():
        monkeypatch.setattr(module, name, 1)
    root = Path(shutil.copytree(built.root, tmp_path / "a"))
    info = {key: value for key, value in built.info.items() if key == "schema_version" or "_version" not in key}
    (root / "corpus.json").write_text(json.dumps(info), encoding="utf-8")
    kept = (root / "images" / "000000_0.jpg").stat().st_mtime_ns
    assert len(build(sources, root).identities) == COUNT
    assert (root / "images" / "000000_0.jpg").stat().st_mtime_ns == kept
    before, after = digest(built.root), digest(root)
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} <= {"corpus.json"}


def test_a_corpus_that_was_being_extended_is_refused_until_it_is_finished(built, tmp_path):
    root = Path(shutil.copytree(built.root, tmp_path / "a", ignore=shutil.ignore_patterns("cache")))
    (root / "corpus.json").write_text(json.dumps(dict(built.info) | {"complete": False}), encoding="utf-8")
    with pytest.raises(CorpusInvalid, match=r"did not finish.*again to finish it"):
        read_corpus(root)


@pytest.mark.parametrize(
    "options",
    [{"identities": 0}, {"portraits": 0}, {"clips": 101}, {"size": 8}, {"seed": -1}, {"workers": 0}, {"size": 64.0}],
)
def test_numbers_out_of_range_are_refused(sources, tmp_path, options):
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        build(sources, tmp_path / "a", warm=False, **options)
    assert not (tmp_path / "a").exists()


def test_missing_folders_are_refused(sources, tmp_path):
    with pytest.raises(CorpusInvalid, match="MakeHuman"):
        build((tmp_path / "nowhere", sources[1]), tmp_path / "a", warm=False)
    with pytest.raises(CorpusInvalid, match=r"speakers\.csv"):
        build((sources[0], tmp_path / "nowhere"), tmp_path / "a", warm=False)
    assert not (tmp_path / "a").exists()


def test_an_unwritable_output_is_named(sources, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OutputUnwritable, match="file"):
        build(sources, tmp_path / "file")


def rewrite(root: Path, change) -> None:
    with (root / "table.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    change(rows)
    with (root / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].update(age="old"), "old"),
        (lambda rows: rows[0].update(split="dev"), "dev"),
        (lambda rows: rows[0].update(images="images/none.jpg"), "none.jpg"),
        (lambda rows: rows[0].update(images="../images/000000_0.jpg"), "not there"),
        (lambda rows: rows[0].update(id=rows[1]["id"]), "twice"),
        (lambda rows: [row.update(speaker="everyone") for row in rows], "two splits"),
        (lambda rows: [row.pop("f0_hz") for row in rows], "f0_hz"),
    ],
)  # fmt: skip
def test_a_damaged_table_is_refused(built, tmp_path, change, message):
    root = Path(shutil.copytree(built.root, tmp_path / "a", ignore=shutil.ignore_patterns("cache")))
    rewrite(root, change)
    with pytest.raises(CorpusInvalid, match=message):
        read_corpus(root)


def test_no_corpus_and_another_schema_are_refused(built, tmp_path):
    with pytest.raises(CorpusInvalid, match="is no corpus"):
        read_corpus(tmp_path)
    (tmp_path / "corpus.json").write_text(json.dumps(dict(built.info) | {"schema_version": 2}), encoding="utf-8")
    with pytest.raises(CorpusInvalid, match="schema"):
        read_corpus(tmp_path)


def test_the_contact_sheet_shows_every_portrait(built, tmp_path):
    sheet = contact_sheet(built, count=4, columns=2, tile=32)
    assert sheet.width >= 64
    assert sheet.height >= 64
    assert "F" in describe(built.identities[0])[0]
    save_contact_sheet(built, tmp_path / "sheet.png", count=4, columns=2)
    assert (tmp_path / "sheet.png").stat().st_size > 0
    with pytest.raises(OutputUnwritable):
        save_contact_sheet(built, tmp_path / "nowhere" / "sheet.png")


def asset(variable: str, content: str) -> Path:
    """The folder a variable names; one that is named and wrong fails the test, one not named skips it."""
    if not os.environ.get(variable):
        pytest.skip(f"set {variable} to {content} to run this on real data")
    return Path(os.environ[variable])


@pytest.mark.slow
def test_real_assets_make_a_corpus(tmp_path):
    pytest.importorskip("numba", reason="the renderer needs the train extra")
    makehuman = asset("S2F_MAKEHUMAN", "the folder that holds MakeHuman's `data` folder (CC0)")
    speech = asset("S2F_SPEECH", "a folder of recordings with a speakers.csv (file,speaker,sex)")
    corpus = build_corpus(makehuman, speech, tmp_path / "a", 2, size=64, workers=1, progress=False)
    assert {identity.sex for identity in corpus.identities} == {"F", "M"}
