"""`s2f-train judge` and `s2f-train evaluate`: options and what they run. Heavy packages come with the run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

Command = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that `train` reads."""
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by `s2f-train corpus`")
    parser.add_argument("--out", type=Path, required=True, help="folder for judge.safetensors, logs and samples")
    parser.add_argument("--steps", type=int, metavar="N", help="batches of 64 (default 3500)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default 0)")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that `evaluate` reads."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder with trained stages")
    add_shared_arguments(parser)


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every evaluation, whatever paints; `options_of` reads them."""
    parser.add_argument("--corpus", type=Path, required=True, help="corpus whose test voices are painted")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--speech", type=Path, help="the recordings the corpus was made from: also paint these voices")
    parser.add_argument("--voices", type=int, metavar="N", help="test voices, drawn at random (default: all)")
    parser.add_argument("--seeds", type=int, default=2, metavar="K", help="portraits of each voice (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="first seed, and that of every draw (default 0)")
    parser.add_argument("--judge", type=Path, help="a file of `s2f-train judge` (default: the shipped judge)")


def train(arguments: argparse.Namespace) -> None:
    """Carry out `s2f-train judge`."""
    from training.evaluate.train_judge import STEPS, judge

    steps = STEPS if arguments.steps is None else arguments.steps
    sys.stdout.write(f"{judge(arguments.corpus, arguments.out, steps=steps, seed=arguments.seed)}\n")


def evaluate(arguments: argparse.Namespace) -> None:
    """Carry out `s2f-train evaluate`."""
    from training.evaluate.assess import assess, options_of
    from training.evaluate.painter import reconstructed, run_painters

    run = arguments.run_folder
    references = {"reconstruction": lambda corpus, identities: reconstructed(run, corpus, identities)}
    for path in assess(run_painters(run), options_of(arguments), references):
        sys.stdout.write(f"{path}\n")


COMMANDS: dict[str, Command] = {
    "judge": ("train the network that evaluation measures with", add_judge_arguments, train),
    "evaluate": ("measure a run's portraits of unheard voices", add_evaluate_arguments, evaluate),
}
