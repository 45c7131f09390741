"""How many portraits the rasteriser draws per second of one core: CPU time, after warm-up, on a built corpus' faces.

python benchmarks/render_rate.py MAKEHUMAN CORPUS -o benchmarks/results/render-rate.json
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from training.corpus.pairing import draw_view
from training.corpus.render import Renderer
from training.corpus.table import read_corpus

SIZES, FACES, WARM_UP = (128, 256), 60, 20


def rate(makehuman: Path, corpus: Path, size: int) -> float:
    """Portraits per second of CPU time over the corpus' first faces, each with a view of its own."""
    renderer = Renderer(makehuman, size)
    catalogue = renderer.catalogue()
    jobs = [
        (identity.face, draw_view(np.random.default_rng(number), catalogue))
        for number, identity in enumerate(read_corpus(corpus).identities[:FACES])
    ]
    for face, view in jobs[:WARM_UP]:
        renderer.render(face, view)
    begin = time.process_time()
    for face, view in jobs:
        renderer.render(face, view)
    return len(jobs) / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("makehuman", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    rates = {f"{size} px": round(rate(options.makehuman, options.corpus, size), 1) for size in SIZES}
    result = {"faces": FACES, "portraits_per_second_per_core": rates}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{result}\n")


if __name__ == "__main__":
    main()
