"""Makes tests/data/corpus: ten rendered portraits at 64 px and ten short clips of synthetic (espeak-ng) speech.

    python tests/data/make_corpus.py MAKEHUMAN_DATA_FOLDER

Only the fixture needs this: no recording of a person is in it, so it can be committed.
"""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr

from runtime.specs import SAMPLE_RATE
from training.corpus.build import encode_flac, encode_jpeg
from training.corpus.licences import FACES
from training.corpus.pairing import draw_face, draw_view
from training.corpus.render import Renderer
from training.corpus.table import INFO_NAME, SCHEMA_VERSION, TABLE_NAME, Identity, to_row, write_table
from training.corpus.voices import VoiceParameters

OUT = Path(__file__).parent / "corpus"
SPLITS = ("train",) * 6 + ("val",) * 2 + ("test",) * 2
SECONDS = 1.2


def speak(number: int, sex: str) -> np.ndarray:
    """A short sentence as float32 at 16 kHz."""
    voice = f"en-us+{'f' if sex == 'F' else 'm'}{1 + number % 4}"
    pitch, speed = str(35 + 4 * number), str(140 + 5 * number)
    command = ["espeak-ng", "-v", voice, "-p", pitch, "-s", speed, "--stdout", "The harbour train leaves at nine."]
    pcm, rate = soundfile.read(io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout))
    return soxr.resample(pcm, rate, SAMPLE_RATE).astype(np.float32)[: int(SAMPLE_RATE * SECONDS)]


def main(makehuman: str) -> None:
    renderer = Renderer(makehuman, 64)
    catalogue = renderer.catalogue()
    rows = []
    for folder in ("images", "clips"):
        (OUT / folder).mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(SPLITS):
        sex = "FM"[number % 2]
        rng = np.random.default_rng([11, number])
        voice = VoiceParameters(200.0 if sex == "F" else 110.0, 1.0 + 0.01 * number, 1.0, 0.2, 0.01, 1.0)
        face = draw_face(rng, voice, sex, catalogue)
        image, clip = f"images/{number:06d}_0.jpg", f"clips/{number:06d}_0.flac"
        (OUT / image).write_bytes(encode_jpeg(renderer.render(face, draw_view(rng, catalogue))))
        (OUT / clip).write_bytes(encode_flac(speak(number, sex)))
        rows.append(to_row(Identity(f"{number:06d}", split, sex, f"espeak{number}", voice, face, (image,), (clip,))))
    write_table(OUT / TABLE_NAME, rows)
    info = {
        "schema_version": SCHEMA_VERSION,
        "complete": True,
        "licences": {"faces": FACES, "voices": "espeak-ng, synthetic."},
        "statement": "A fixture for tests: ten rendered faces, synthetic speech. It says nothing about people.",
    }
    (OUT / INFO_NAME).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
