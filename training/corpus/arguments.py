"""Options of `s2f-train corpus`. Standard library only: the help text must print where nothing else is installed."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `build.run` reads."""
    parser.add_argument("--makehuman", required=True, metavar="DIR", help="MakeHuman data folder (CC0 assets)")
    parser.add_argument(
        "--speech", required=True, metavar="DIR", help="recordings with a speakers.csv (file,speaker,sex)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the corpus is written, or continued")
    parser.add_argument("--identities", required=True, type=int, metavar="N", help="how many people to invent")
    parser.add_argument("--portraits", type=int, default=1, metavar="K", help="pictures of each (default 1)")
    parser.add_argument("--clips", type=int, default=1, metavar="K", help="7 s clips of each (default 1)")
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="portrait size (default 256)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same corpus (default 0)")
    parser.add_argument("--only", choices=("train", "val", "test"), help="make the identities of this split alone")
    parser.add_argument("--workers", type=int, default=None, metavar="W", help="processes (default: all cores)")
