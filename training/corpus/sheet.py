"""A contact sheet: portraits of a corpus in a grid, their attributes printed under each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from runtime.errors import CorpusInvalid, OutputUnwritable
from training.corpus.table import Corpus, Identity

GAP, LINES, LINE_HEIGHT = 6, 3, 13
PAPER, INK = (250, 250, 248), (40, 40, 40)


def contact_sheet(corpus: Corpus, count: int = 64, columns: int = 8, tile: int = 160) -> Image.Image:
    """The first `count` identities, `tile` pixels wide each, with three lines of text under every portrait."""
    shown = corpus.identities[:count]
    rows = -(-len(shown) // columns)
    cell_height = tile + LINES * LINE_HEIGHT + GAP
    sheet = Image.new("RGB", (columns * (tile + GAP) + GAP, rows * (cell_height + GAP) + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10.5)
    for place, identity in enumerate(shown):
        x = GAP + place % columns * (tile + GAP)
        y = GAP + place // columns * (cell_height + GAP)
        sheet.paste(_portrait(corpus.image_paths(identity)[0], tile), (x, y))
        for line, text in enumerate(describe(identity)):
            draw.text((x + 1, y + tile + 1 + line * LINE_HEIGHT), text, fill=INK, font=font)
    return sheet


def save_contact_sheet(corpus: Corpus, path: str | os.PathLike[str], count: int = 64, columns: int = 8) -> None:
    """Write the sheet; the ending of `path` decides the format."""
    try:
        contact_sheet(corpus, count, columns).save(path)
    except (OSError, ValueError) as error:
        raise OutputUnwritable(f"{path}: {error}; choose a writable path ending in .png or .jpg") from error


def describe(identity: Identity) -> Sequence[str]:
    """Three short lines: who, the voice, the origin shares."""
    voice, face = identity.voice, identity.face
    return (
        f"{identity.id} {identity.sex} {face.age:.0f} y  {identity.split}",
        f"F0 {voice.f0_hz:.0f} Hz  formants x{voice.formant_scale:.2f}",
        f"rate x{voice.rate:.2f}  afr {face.african:.0%}, asi {face.asian:.0%}, cau {face.caucasian:.0%}",
    )


def _portrait(path: Path, tile: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
    except OSError as error:
        raise CorpusInvalid(f"{path}: not readable as an image ({error}); build the corpus again") from error
