"""How good the portraits of bundles are: sex, age, identity, diversity, over steps and weights of the face prior.

    python benchmarks/quality.py BUNDLE [BUNDLE …] --corpus CORPUS --out DIR [--speech DIR] [--voices N] [--seeds K]

The same judge and the same tables as `s2f-train evaluate`, for what devices run: a quantised bundle stands beside its
original. Only test voices of the corpus are painted; `s2f-train corpus … --only test` makes a corpus of nothing else.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import runtime
from training.evaluate.assess import assess, options_of
from training.evaluate.commands import add_shared_arguments

RATE = 16_000


class BundlePainter:
    """A loaded bundle as a painter (`training.evaluate.protocol.Painter`)."""

    def __init__(self, name: str, pipeline: runtime.Pipeline) -> None:
        manifest = pipeline.manifest
        self.pipeline, self.name, self.identity = pipeline, name, pipeline.identity
        self.steps = tuple(sorted(manifest.step_tables))
        self.default_steps = manifest.default_steps
        self.prior_weight = manifest.prior.weight
        self.prior_weights = (manifest.prior.min, manifest.prior.max)
        solvers = {table.solver for table in manifest.step_tables.values()}
        self.facts = {"solver": "/".join(sorted(solvers)), "guidance": manifest.guidance.default}

    def paint(
        self, pcm: NDArray[np.float32], seeds: Sequence[int], steps: int, prior_weight: float
    ) -> NDArray[np.uint8]:
        """pcm float32 [n, 96000], one seed per row → portraits uint8 [n, H, W, 3]."""
        speeches: list[Any] = [(one, RATE) for one in pcm]
        portraits = self.pipeline.generate(speeches, seed=list(seeds), steps=steps, prior_weight=prior_weight)
        return np.stack([portrait.image for portrait in portraits])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="tables call each by its folder's name")
    add_shared_arguments(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--threads", type=int, help="CPU threads per graph (default: as `s2f generate`)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with ExitStack() as stack:
            painters = []
            for path in arguments.bundles:
                pipeline = runtime.load(path, device=arguments.device, threads=arguments.threads)
                painters.append(BundlePainter(path.resolve().name, stack.enter_context(pipeline)))
            for written in assess(painters, options_of(arguments)):
                sys.stdout.write(f"{written}\n")
    except runtime.S2FError as error:
        sys.stderr.write(f"quality: error [{error.code}]: {error}\n")
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
