"""Everything that needs an NVIDIA GPU, in pieces: builds, checks against the CPU, measures, writes JSON. See README.md.

python benchmarks/gpu/run.py --all -o benchmarks/results/gpu/HOST [--torch-python PATH]
python benchmarks/gpu/run.py PIECE… -o benchmarks/results/gpu/HOST

Runs from the source folder, whether the package is installed or not.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of this folder, whose modules are benchmarks.gpu's
    from benchmarks.gpu.command import main

    sys.exit(main())
