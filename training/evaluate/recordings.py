"""Real recordings as voices: only their speakers' sex is known, so sex and diversity are all that is measured."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import CorpusInvalid
from training.corpus.build import fingerprint_speech
from training.corpus.pairing import assign_splits
from training.corpus.table import Corpus
from training.corpus.voices import read_speakers
from training.evaluate.protocol import Voices


def recordings(folder: Path, corpus: Corpus) -> Voices:
    """The test split's speakers of the folder that the corpus was made from, as they were recorded.

    Raises CorpusInvalid for a folder that is another than the corpus': who of it was heard in training is unknown.
    """
    speakers = read_speakers(folder)
    known = corpus.info.get("sources", {}).get("speech")
    if known != fingerprint_speech(speakers):
        raise CorpusInvalid(
            f"{folder}: not the recordings that {corpus.root} was made from, so training may have heard any of them; "
            "give the folder that `s2f-train corpus --speech` was given"
        )
    splits = assign_splits(speakers)
    heard = {identity.speaker for identity in corpus.identities if identity.split != "test"}
    unheard = [speaker for speaker in speakers if splits[speaker.name] == "test"]
    if any(speaker.name in heard for speaker in unheard):
        raise CorpusInvalid(
            f"{folder}: its test speakers are not those of {corpus.root}; give the corpus' own recordings"
        )
    return Voices("recordings", tuple(s.path for s in unheard), tuple(s.sex for s in unheard))
