"""A contact sheet: one portrait per recording, in a grid, with the recording's name under it.

    python examples/contact_sheet.py VOICE.flac [VOICE.flac …] -o sheet.jpg [--bundle BUNDLE] [--steps N] [--seeds K]

Every row holds the portraits of one seed. A voice does not determine a face: other seeds give other portraits, equally
plausible. The sheet carries the mark that every portrait carries.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import runtime
from runtime.portrait import save_marked

CAPTION = 14
DESCRIPTION = "Plausible portraits drawn by a model from voices. They show no real person and identify nobody."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voices", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=1, help="rows: seeds 0 to K-1")
    parser.add_argument("--columns", type=int, default=10)
    options = parser.parse_args()
    with runtime.load(options.bundle) as pipeline:
        rows = [pipeline.generate(options.voices, steps=options.steps, seed=seed) for seed in range(options.seeds)]
    size = rows[0][0].image.shape[0]
    columns = min(options.columns, len(options.voices))
    bands = -(-len(options.voices) // columns)
    sheet = Image.new("RGB", (columns * size, bands * (options.seeds * size + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, voice in enumerate(options.voices):
        left, top = index % columns * size, index // columns * (options.seeds * size + CAPTION)
        for seed, portraits in enumerate(rows):
            sheet.paste(Image.fromarray(portraits[index].image), (left, top + seed * size))
        draw.text((left + 3, top + options.seeds * size + 1), voice.stem, fill="black")
    facts = {**rows[0][0].facts, "Seed": f"0 to {options.seeds - 1}" if options.seeds > 1 else 0}
    save_marked(np.asarray(sheet), options.out, facts=facts, description=DESCRIPTION, quality=90)


if __name__ == "__main__":
    main()
