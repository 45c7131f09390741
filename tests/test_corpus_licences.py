"""What corpus.json says about the recordings it was made from."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="building a corpus needs the train extra")

from training.corpus.licences import LIBRISPEECH, licences_of, voices_licence
from training.corpus.voices import Speaker, read_speakers


def speaker(name: str, licence: str, source: str = "") -> Speaker:
    return Speaker(name, "F", Path(f"{name}.flac"), licence, source)


def test_librispeech_is_attributed_in_full_and_once():
    source = "LibriSpeech train-clean-100 via github resemble-ai/Resemblyzer"
    text = voices_licence([speaker("a", "CC BY 4.0", source), speaker("b", "CC BY 4.0", source)])
    for part in (
        "LibriSpeech (c) 2014 by Vassil Panayotov",
        "CC BY 4.0",
        "creativecommons.org/licenses/by/4.0/",
        "changed",
    ):
        assert text.count(part) == 1


def test_other_recordings_are_listed_and_not_called_librispeech():
    text = voices_licence([speaker("a", "CC BY-SA 3.0"), speaker("b", "CC0 1.0"), speaker("c", "CC0 1.0")])
    assert text.startswith("CC BY-SA 3.0, CC0 1.0, see speakers.csv")
    assert "LibriSpeech" not in text
    assert "LibriSpeech" not in voices_licence([speaker("a", "CC BY 4.0", "Multilingual LibriSpeech (MLS), German")])


def test_mixed_sources_name_both():
    text = voices_licence([speaker("a", "CC BY 4.0", "LibriSpeech dev-clean"), speaker("b", "CC0 1.0", "own")])
    assert text.startswith(LIBRISPEECH)
    assert "Other recordings: CC0 1.0, see speakers.csv" in text


def test_a_missing_licence_is_not_passed_over():
    assert "no licence stated" in voices_licence([speaker("a", " "), speaker("b", "CC0 1.0")])


def test_a_strange_column_stays_one_short_line():
    text = voices_licence([speaker(f"s{number}", f"{number}\n\x1b[31m" + "x" * 500) for number in range(40)])
    assert text.isprintable()
    assert "32 more" in text
    assert len(text) < 1000


def test_the_columns_are_read_from_speakers_csv(tmp_path):
    (tmp_path / "a.flac").touch()
    row = "a.flac,a,F,CC BY 4.0,LibriSpeech train-clean-100"
    (tmp_path / "speakers.csv").write_text(f"file,speaker,sex,licence,source\n{row}\n", encoding="utf-8")
    assert licences_of(read_speakers(tmp_path))["voices"] == LIBRISPEECH
