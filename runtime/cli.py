"""The command `s2f`: generate, prepare, info, verify, doctor, bench. Results go to stdout, errors to stderr."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from . import __version__, commands
from .errors import BackendMissing, S2FError
from .precision import PRECISIONS

INTERRUPTED = 130
UNEXPECTED = 1

RESPECT = (
    "A voice does not determine a face. The output is a plausible portrait drawn by a model; it shows no real person "
    "and identifies nobody. Not for surveillance, identification or decisions about people. Saved files say that they "
    "were generated."
)
EXIT = (
    "Exit status: 0, or the code of the error shown in brackets; 2 for a command line that cannot be read, 130 when "
    "interrupted."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, an error's code, 2 (usage, by SystemExit), 130 (interrupted)."""
    arguments = build_parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        status = command(arguments)
        sys.stdout.flush()
    except S2FError as error:
        return _fail(error.code, str(error), arguments.debug)
    except ModuleNotFoundError as error:
        name = (error.name or str(error)).partition(".")[0]
        return _fail(
            BackendMissing.code, f"The package {name} is not installed. Run: pip install {name}", arguments.debug
        )
    except KeyboardInterrupt:
        sys.stderr.write("s2f: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`s2f info | head`). Python flushes stdout once more at exit, which must find a place.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNEXPECTED
    except Exception as error:  # noqa: BLE001 - the last resort of a program: one line instead of a traceback
        hint = "" if arguments.debug else " Run again with --debug for the traceback, and please report it."
        return _fail(UNEXPECTED, f"unexpected {type(error).__name__}: {error}.{hint}", arguments.debug)
    return status


def build_parser() -> argparse.ArgumentParser:
    """The command line; each command's function is the default of `command`."""
    parser = argparse.ArgumentParser(
        prog="s2f", description="Speech in, plausible portrait out. " + RESPECT, epilog=EXIT
    )
    parser.add_argument("--version", action="version", version=f"s2f-edge {__version__}")
    group = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = group.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {RESPECT}", epilog=EXIT)
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        made.set_defaults(command=command)
        return made

    _add_generate(add("generate", commands.generate, "draw portraits from speech"))
    prepare = add(
        "prepare", commands.prepare, "make ready what a device needs before it draws, such as TensorRT's engines"
    )
    prepare.epilog = (
        "tensorrt: builds the engines for this GPU, which takes a while; generate never builds. cuda: makes a fused "
        "graph in half precision, used if it is faster here. openvino: compiles the graphs and measures them beside "
        "ONNX Runtime; auto takes the faster from then on. cpu: keeps the graphs as ONNX Runtime optimises them for "
        "this processor, so that they open sooner. What is made lies in the user's cache, or in the folder "
        f"S2F_CACHE, and serves from then on. With auto it is enough that one device can be prepared. {EXIT}"
    )
    info = add("info", commands.info, "show what a bundle is")
    verify = add(
        "verify", commands.verify, "check a bundle and its variants: contract, sizes, hashes, graphs, portraits"
    )
    doctor = add("doctor", commands.doctor, "show which devices work here, which would be used and why not the others")
    bench = add("bench", commands.bench, "measure a bundle here, stage by stage")
    for made in (prepare, info, verify, bench):
        made.add_argument("bundle", nargs="?", metavar="BUNDLE", help="folder of the bundle; default: the shipped demo")
    for made in (info, doctor):
        made.add_argument("--json", action="store_true", help="print JSON")
    prepare.add_argument("--device", default="auto", help="auto (default): whatever works here; or one device")
    for made in (verify, bench):
        _add_device(made)
    _add_bench(bench)
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("speech", nargs="+", metavar="IN", help="audio file: WAV, FLAC, OGG, MP3; any rate, any number of channels")
    add("-o", "--out", required=True, metavar="OUT", help="image file for one portrait, folder for several")
    add("--bundle", metavar="DIR", help="folder of the bundle; default: the shipped demo")
    add("--steps", type=int, metavar="N", help="denoising steps, one of the bundle's (s2f info); default: the bundle's")
    add("--seed", type=int, default=0, metavar="S", help="same seed, same portrait (default 0)")
    add("--n", type=int, default=1, metavar="K", help="portraits per input, with seeds S to S+K-1 (default 1)")
    add("--guidance", type=float, metavar="G", help="weight of the voice, within the bundle's range (s2f info)")
    add("--prior-weight", type=float, metavar="P", help="weight of the average face, within the bundle's range")
    add("--window", default="start", metavar="W", help="which six seconds: start (default), centre, loudest")
    add("--format", choices=("png", "jpeg", "webp"), help="default: the suffix of OUT, png in a folder")
    _add_device(parser)
    parser.epilog = (
        "All or nothing: if one input fails, or one file cannot be written, no portrait is written. Existing files of "
        f"the same name are replaced. {EXIT}"
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json", metavar="OUT", help="also write the report with its raw values to this file")
    add("--markdown", action="store_true", help="print Markdown instead of text")
    add("--steps", type=int, metavar="N", help="denoising steps; default: the bundle's")
    add("--runs", type=int, default=200, metavar="N", help="timed calls (default 200)")
    add("--warmup", type=int, default=20, metavar="N", help="calls before them (default 20)")
    add("--warm-only", action="store_true", help="leave out what is measured in fresh processes")
    add("--patience", type=float, default=0, metavar="S", help="wait up to S seconds until N calls were undisturbed")
    compared = parser.add_mutually_exclusive_group()
    compared.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="measure nothing; B's times by A's, two reports"
    )
    compared.add_argument(
        "--baseline", metavar="A", help="compare this run with A, a report or a folder with one per machine"
    )
    add("--max-ratio", type=float, metavar="R", help="fail if the whole call surely takes more than R times as long")
    add("--anyway", action="store_true", help="compare also other bundles, steps, devices, threads or precisions")
    parser.epilog = (
        "A run is dirty where something else used the CPU; it says so and still counts as done. Only undisturbed "
        f"blocks of calls are compared, and --max-ratio judges nothing without them. {EXIT}"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        help="auto (default), cpu, openvino, cuda or tensorrt; s2f doctor says which work",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: the physical cores usable here")
    parser.add_argument(
        "--precision",
        default="auto",
        help=f"{', '.join(PRECISIONS)}; auto (default): int8 where the bundle has it and it passed its gate, and the "
        "processor is made for it; on a GPU what was prepared",
    )


def _fail(code: int, message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"s2f: error [{code}]: {message}\n")
    return code
