"""Command line of training: `s2f-train corpus|pretrain|align|prior|diffusion|shortcut|decoder|all|judge|evaluate`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import BackendMissing, ConfigInvalid, OutputUnwritable, S2FError
from training.evaluate.commands import COMMANDS

if TYPE_CHECKING:
    from training.config import Config

STAGES = ("pretrain", "align", "prior", "diffusion", "shortcut", "decoder")
OPTIONAL = ("align", "shortcut", "decoder")  # stages that a configuration may leave out
RESPECT = (
    "A voice does not determine a face. What is trained here draws a plausible portrait of who may be speaking; "
    "it identifies nobody and is not for surveillance."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0 or the code of the error."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        arguments.run(arguments)
    except S2FError as error:
        sys.stderr.write(f"s2f-train: error [{error.code}]: {error}\n")
        return error.code
    except OSError as error:
        sys.stderr.write(f"s2f-train: error [{OutputUnwritable.code}]: {error}; free space or choose another folder\n")
        return OutputUnwritable.code
    except KeyboardInterrupt:
        sys.stderr.write("s2f-train: interrupted; the same command continues from the last saved step\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("s2f-train", description="Trains speech-to-face systems.", epilog=RESPECT)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    corpus = commands.add_parser("corpus", help="build the synthetic corpus", epilog=RESPECT)
    _add_corpus_arguments(corpus)
    for name in (*STAGES, "all"):
        text = "every stage that is not finished yet" if name == "all" else f"stage {STAGES.index(name) + 1}: {name}"
        command = commands.add_parser(name, help=text, epilog=RESPECT)
        command.add_argument("--config", default="demo", help="tiny, demo, paper, or a TOML file (default: demo)")
        command.add_argument("--corpus", type=Path, required=True, help="folder written by `s2f-train corpus`")
        command.add_argument("--out", type=Path, required=True, help="run folder for checkpoints, logs and samples")
        command.set_defaults(run=_train, stage=name)
    for name, (text, add_arguments, run) in COMMANDS.items():
        command = commands.add_parser(name, help=text, epilog=RESPECT)
        add_arguments(command)
        command.set_defaults(run=partial(_evaluation, run))
    return parser


def _add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    from training.corpus.arguments import add_arguments

    add_arguments(parser)
    parser.set_defaults(run=_build_corpus)


def _build_corpus(arguments: argparse.Namespace) -> None:
    try:
        from training.corpus.build import run
    except ImportError as error:
        raise _missing(error) from error
    run(arguments)


def _evaluation(run: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> None:
    try:
        run(arguments)
    except ImportError as error:
        raise _missing(error) from error


def _missing(error: ImportError) -> BackendMissing:
    return BackendMissing(f"training lacks a package ({error}); install it with: pip install 's2f-edge[train]'")


def _train(arguments: argparse.Namespace) -> None:
    try:
        from training.align import align
        from training.decoder import decoder
        from training.diffusion import diffusion
        from training.pretrain import pretrain
        from training.prior import prior
        from training.shortcut import shortcut
    except ImportError as error:
        raise _missing(error) from error
    from training.config import load_config

    config = load_config(arguments.config)
    functions = dict(zip(STAGES, (pretrain, align, prior, diffusion, shortcut, decoder), strict=True))
    left_out = [name for name in OPTIONAL if not getattr(config, name).steps]
    if arguments.stage in left_out:
        raise ConfigInvalid(f"configuration {config.name} has no stage {arguments.stage}; set {arguments.stage}.steps")
    wanted = [name for name in STAGES if name not in left_out] if arguments.stage == "all" else [arguments.stage]
    for name in wanted:
        if _finished(arguments.out, name, config, arguments.corpus):
            logging.getLogger(__name__).info("%s is finished; delete its checkpoint to train it again", name)
            continue
        path = functions[name](config, arguments.corpus, arguments.out)
        sys.stdout.write(f"{path}\n")


def _finished(run: Path, stage: str, config: Config, corpus: Path) -> bool:
    from training.checkpoint import load_stage
    from training.corpus.table import read_corpus
    from training.data import fingerprint

    if not (run / f"{stage}.safetensors").exists():
        return False
    load_stage(run, stage, config, fingerprint(read_corpus(corpus)))
    return True
