"""`s2f-calibrate BUNDLE --data SPEECH -o BUNDLE8`: a bundle with variants in eight bits, if they keep the face."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import BackendMissing, GateMissed, InvalidArgument, OutputUnwritable, S2FError
from runtime.pipeline import shipped_bundle
from runtime.variants import FAMILIES

if TYPE_CHECKING:
    from calibration.run import Outcome

RESPECT = (
    "A voice does not determine a face. What a bundle draws, in any precision, is a plausible portrait; it identifies "
    "nobody and is not for surveillance."
)
NEEDED = ("onnx", "onnxruntime", "safetensors", "matplotlib", "tqdm")
STORES = ("as-is", "int8")
METHODS = ("auto", "minmax", "percentile", "entropy")
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, which is the code of the error if there is one."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="%(message)s")
    try:
        outcome = _run(arguments)
    except S2FError as error:
        sys.stderr.write(f"s2f-calibrate: error [{error.code}]: {error}\n")
        return error.code
    except OSError as error:  # files and folders that no check foresaw
        sys.stderr.write(f"s2f-calibrate: error [{OutputUnwritable.code}]: {error}; choose another folder with -o\n")
        return OutputUnwritable.code
    except KeyboardInterrupt:
        sys.stderr.write(
            "s2f-calibrate: interrupted; what stands there is whole, and the same command goes on from here\n"
        )
        return INTERRUPTED
    sys.stdout.write(outcome.summary)
    return GateMissed.code if outcome.left_out else 0


def _run(arguments: argparse.Namespace) -> Outcome:
    missing = [name for name in NEEDED if util.find_spec(name) is None]
    if missing:
        raise BackendMissing(f'Calibration needs {", ".join(missing)}. Run: pip install "s2f-edge[calibrate]"')
    from calibration.calibrate import Options
    from calibration.run import Job, run

    families = tuple(dict.fromkeys(arguments.family or FAMILIES))
    for name, value, least in (("--portraits", arguments.portraits, 1), ("--pairs", arguments.pairs, 1)):
        if value < least:
            raise InvalidArgument(f"{name} is {value}; give {least} or more")
    if arguments.seed < 0:
        raise InvalidArgument(f"--seed is {arguments.seed}; give 0 or more")
    options = Options(
        families=families,
        portraits=arguments.portraits,
        pairs=arguments.pairs,
        seed=arguments.seed,
        method=arguments.method,
        also=tuple(arguments.also or ()),
    )
    target = arguments.output
    job = Job(
        bundle=arguments.bundle or shipped_bundle(),
        data=arguments.data,
        check=arguments.check,
        target=target,
        report=arguments.report or target.parent / f"{target.name}-report",
        store=arguments.store,
        force=arguments.force,
        keep_missed=arguments.keep_missed,
        options=options,
    )
    return run(job, _bar)


def _bar(items: Iterable[Any], what: str) -> Iterator[Any]:
    """A progress bar on stderr where that is a terminal."""
    from tqdm import tqdm

    yield from tqdm(items, desc=what, disable=None, leave=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="s2f-calibrate",
        description="Make variants of a bundle that compute in eight bits: ranges from recordings of speech, a plan of "
        "which layers stay in float32, a gate on portraits of other voices, a report. Needs no GPU and no torch.",
        epilog="The same command goes on where it was broken off. " + RESPECT,
    )
    add = parser.add_argument
    add("bundle", nargs="?", metavar="BUNDLE", type=Path, help="folder of the bundle; default: the shipped demo")
    add(
        "--data",
        required=True,
        metavar="FOLDER",
        type=Path,
        help="recordings of speech, 32 or more; half of them judge",
    )
    add("--check", metavar="FOLDER", type=Path, help="recordings to judge by, instead of half of those of --data")
    add("-o", "--output", required=True, metavar="BUNDLE8", type=Path, help="folder of the bundle to write")
    add("--report", metavar="FOLDER", type=Path, help="folder of the report (default: BUNDLE8-report)")
    add("--family", action="append", choices=FAMILIES, help="only this variant; may be repeated (default: both)")
    add(
        "--store",
        choices=("as-is", "int8"),
        default="as-is",
        help="int8: the float32 graphs' weights in eight bits too",
    )
    add("--method", choices=METHODS, default="auto", help="how ranges are chosen; auto tries all, stage by stage")
    add("--also", action="append", metavar="PART", help="quantise layers with this in their name though they are kept")
    add("--portraits", type=int, default=128, metavar="N", help="portraits to observe (default: %(default)s)")
    add("--pairs", type=int, default=256, metavar="N", help="voice and seed pairs of the gate (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of noise and spoilt recordings (default: %(default)s)")
    add("--force", action="store_true", help="go on with fewer than 32 recordings, and replace -o if it is a bundle")
    add(
        "--keep-missed",
        action="store_true",
        help="write variants that miss the gate too, marked so; auto passes them over",
    )
    add("-v", "--verbose", action="store_true", help="also say what is chosen and left out")
    return parser
