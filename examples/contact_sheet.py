"""A contact sheet: one portrait per recording, in a grid, with the recording's name under it.

    python examples/contact_sheet.py VOICE.flac [VOICE.flac …] -o sheet.jpg [--bundle BUNDLE] [--steps N] [--seeds K]

Every row holds the portraits of one seed. A voice does not determine a face: other seeds give other portraits, equally
plausible.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

import runtime

CAPTION = 14


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
    sheet.save(options.out, quality=90)


if __name__ == "__main__":
    main()
