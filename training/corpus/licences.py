"""What a corpus must say about the licences of its sources; corpus.json carries it, a model card repeats it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from training.corpus.voices import Speaker

FACES = "Rendered from MakeHuman assets, CC0 1.0 Universal."
CHANGES = "changed: pitch, formants, rate, breathiness, room, noise"
LIBRISPEECH = (
    f"LibriSpeech (c) 2014 by Vassil Panayotov, CC BY 4.0, https://creativecommons.org/licenses/by/4.0/; {CHANGES}."
)
_LIBRISPEECH_NAME = re.compile(r"(?<!multilingual )\blibrispeech\b", re.IGNORECASE)
_MOST_LISTED, _LONGEST = 8, 80  # of other licences: their number, and the characters of each


def licences_of(speakers: Iterable[Speaker]) -> dict[str, str]:
    """`licences` of corpus.json: {"faces": text, "voices": text}, each on one line."""
    return {"faces": FACES, "voices": voices_licence(speakers)}


def voices_licence(speakers: Iterable[Speaker]) -> str:
    """The distinct licences of the recordings on one line, and LibriSpeech's attribution where one comes from there.

    A speaker is LibriSpeech's where the source or licence column of speakers.csv says so. What other sources ask to be
    named is not known here: the text points to the speakers.csv that the corpus was made from.
    """
    texts = {_attribution(speaker) for speaker in speakers}
    others = sorted(texts - {LIBRISPEECH})
    if not others:
        return LIBRISPEECH
    more = f" and {len(others) - _MOST_LISTED} more" if len(others) > _MOST_LISTED else ""
    text = f"{', '.join(others[:_MOST_LISTED])}{more}, see speakers.csv of the speech folder; {CHANGES}."
    return f"{LIBRISPEECH} Other recordings: {text}" if LIBRISPEECH in texts else text


def _attribution(speaker: Speaker) -> str:
    if _LIBRISPEECH_NAME.search(f"{speaker.source} {speaker.licence}"):
        return LIBRISPEECH
    return _one_line(speaker.licence) or "no licence stated"


def _one_line(text: str) -> str:
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())[:_LONGEST]
