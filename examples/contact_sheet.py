"""A contact sheet of portraits in a grid, with the recording's name under it.

    python examples/contact_sheet.py VOICE [VOICE …] -o sheet.jpg [--bundle BUNDLE] [--steps N] [--seeds K]
    python examples/contact_sheet.py VOICE -o steps.jpg --steps 1 2 4 8 --seeds 8

The first draws each recording, one row per seed. The second draws one recording with several numbers of steps: a row
per number, a column per seed. A voice does not determine a face: other seeds give other portraits, equally plausible.
The sheet carries the mark that every portrait carries.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import runtime
from runtime.portrait import save_marked

CAPTION = 14
DESCRIPTION = "Plausible portraits drawn by a model from voices. They show no real person and identify nobody."


def grid(rows: list[list[runtime.Portrait]], captions: list[str]) -> Image.Image:
    """Portraits of equal size, rows under each other, and a caption under each column."""
    size = rows[0][0].image.shape[0]
    sheet = Image.new("RGB", (len(rows[0]) * size, len(rows) * size + CAPTION), "white")
    for top, row in enumerate(rows):
        for left, portrait in enumerate(row):
            sheet.paste(Image.fromarray(portrait.image), (left * size, top * size))
    draw = ImageDraw.Draw(sheet)
    for left, caption in enumerate(captions):
        draw.text((left * size + 3, len(rows) * size + 1), caption, fill="black")
    return sheet


def stacked(parts: list[Image.Image]) -> Image.Image:
    """Pictures under each other, flush left."""
    sheet = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voices", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", help="several: of one voice, a row each")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to K-1")
    parser.add_argument("--columns", type=int, default=10, help="voices beside each other (default 10)")
    options = parser.parse_args()
    several = options.steps if options.steps and len(options.steps) > 1 else []
    if several and len(options.voices) > 1:
        parser.error("several numbers of steps are for one voice")
    if min(options.seeds, options.columns) < 1:
        parser.error("--seeds and --columns are numbers from 1")
    try:
        draw(options, several)
    except runtime.S2FError as error:
        sys.stderr.write(f"contact_sheet: error [{error.code}]: {error}\n")
        return error.code
    return 0


def draw(options: argparse.Namespace, several: list[int]) -> None:
    """Draws and saves the sheet; `several`: numbers of steps of one voice, none for a row per seed."""
    seeds = list(range(options.seeds))
    with runtime.load(options.bundle) as pipeline:
        if several:
            rows = [pipeline.generate(options.voices[0], steps=steps, seed=seeds) for steps in several]
            sheet = grid(rows, [f"seed {seed}" for seed in seeds])
        else:
            steps = options.steps[0] if options.steps else None
            rows = [[pipeline.generate(voice, steps=steps, seed=seed) for voice in options.voices] for seed in seeds]
            bands = [slice(i, i + options.columns) for i in range(0, len(options.voices), options.columns)]
            names = [voice.stem for voice in options.voices]
            sheet = stacked([grid([row[band] for row in rows], names[band]) for band in bands])
    facts = {**rows[0][0].facts, "Seed": f"0 to {seeds[-1]}" if seeds[1:] else 0}
    if several:
        facts["Steps"] = ", ".join(map(str, several))
    save_marked(np.asarray(sheet), options.out, facts=facts, description=DESCRIPTION, quality=90)


if __name__ == "__main__":
    sys.exit(main())
