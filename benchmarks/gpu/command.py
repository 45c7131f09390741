"""The command line behind run.py: which pieces, under which limits; one process per piece with --all."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.doctor import place
from benchmarks.gpu.parts import JSON, Deadline, Part, read_part, run_part
from benchmarks.gpu.plan import FORMS, Counts, Job, Selection
from benchmarks.gpu.worker import SCRIPT, serve, versions
from runtime.engines import PRECISIONS
from runtime.errors import InvalidArgument, S2FError
from runtime.machine import cpu_model, load_average, usable_cores

logger = logging.getLogger(__name__)

INTERRUPTED = 130
LEAST = 5.0  # seconds, under which no piece is begun
GRACE = 20.0  # that a piece may go on beyond its time, with what it had begun
DEFAULTS = Counts()


@dataclasses.dataclass(frozen=True)
class Piece:
    """`module` has `measure(job, part)`. `needs`: packages without which it is skipped. `weight`: its share of the time
    with --all, in seconds of a server's GPU.
    """

    module: str
    needs: tuple[str, ...]
    weight: float
    help: str


PIECES = {
    "doctor": Piece("doctor", (), 15, "what is here: versions, GPU, driver, clocks"),
    "engines": Piece("engines", ("tensorrt", "pycuda", "onnx"), 240, "build what is missing"),
    "latency": Piece("latency", ("tensorrt", "pycuda", "onnx"), 100, "time portraits, stages, launches and copies"),
    "parity": Piece("parity", ("tensorrt", "pycuda", "onnxruntime", "onnx"), 60, "compare with the CPU"),
    "baselines": Piece("baselines", (), 360, "PyTorch and ONNX Runtime beside it, in turn"),
    "soak": Piece("soak", ("tensorrt", "pycuda", "onnx"), 40, "many portraits: does anything grow?"),
    "cuda": Piece("cuda_check", ("onnxruntime",), 60, "ONNX Runtime CUDA against its CPU provider"),
    "table": Piece("table", ("onnx",), 25, "floors, verdicts, Markdown; needs no GPU"),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    lines = [f"  {name:10} {piece.help}" for name, piece in PIECES.items()]
    made = argparse.ArgumentParser(
        prog="run.py",
        description="Build, check and measure on an NVIDIA GPU, in pieces:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("pieces", nargs="*", metavar="PIECE", help=", ".join(PIECES))
    add("--all", action="store_true", help="every piece this interpreter can run, each in a process of its own")
    add("-o", "--out", type=Path, required=True, metavar="FOLDER", help="where each piece writes PIECE.json")
    add("--seconds", type=float, help="stop beginning new work after so many")
    add("--bundle", type=Path, help="folder; left out: the demo bundle")
    add(
        "--speech", type=Path, metavar="FOLDER", help="recordings to compare portraits with; left out: synthetic voices"
    )
    add("--batches", type=_numbers, default=Selection.batches, metavar="N,…")
    add("--steps", type=_numbers, default=(), metavar="N,…", help="default: 1,2,4,8 as far as the bundle has them")
    add(
        "--precisions",
        type=_words(PRECISIONS),
        default=Selection.precisions,
        metavar="P,…",
        help=f"default: {','.join(Selection.precisions)}; int8 for a bundle that s2f-calibrate made",
    )
    add("--forms", type=_words(FORMS), default=FORMS, metavar="F,…")
    add("--runs", type=_count, default=DEFAULTS.runs, help="timed calls per arm; five times as many for the headline")
    add("--rounds", type=_count, default=DEFAULTS.rounds, help="in which they are taken in turn")
    add("--voices", type=_count, default=DEFAULTS.voices, help="how many are compared, each with --seeds seeds")
    add("--seeds", type=_count, default=DEFAULTS.seeds)
    add("--portraits", type=_count, default=DEFAULTS.soak, help="of the piece soak")
    add("--warm", type=float, default=DEFAULTS.warm, help="seconds before timing")
    add("--workspace", type=int, metavar="MIB", help="limit of scratch memory while building (default: the preset's)")
    add("--optimisation", type=int, metavar="0-5", help="TensorRT's builder level (default: the preset's)")
    add("--torch-python", type=Path, metavar="PATH", help="another interpreter, for what this one has not")
    add("--torch-path", default="", metavar="FOLDERS", help="its PYTHONPATH: packages carried along for it")
    add("--torch-device", default="cuda", choices=("cuda", "cpu"), help="cpu: only to try the code")
    add("--network", default="demo", help="configuration of the networks PyTorch runs: a shipped name or a TOML file")
    add("-v", "--verbose", action="store_true", help="say what is logged")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Run; returns the exit status: 0 if every piece asked for was done."""
    words = list(sys.argv[1:] if words is None else words)
    serving = words[:1] == ["serve"]
    options = parser().parse_args(words[1:] if serving else words)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        job = job_of(options)
        for precision in job.selection.precisions:
            job.source(precision)  # refused before anything is built where it has none
        if serving:
            return serve(job)
        pieces = list(PIECES) if options.all else options.pieces
        if not pieces or not set(pieces) <= PIECES.keys() or (options.all and options.pieces):
            given = " ".join(options.pieces) or "none"
            raise InvalidArgument(f"pieces are {', '.join(PIECES)}; {given} was asked for. Or give --all alone")
        states = run_all(job, words) if options.all else {name: run(job, name) for name in pieces}
    except S2FError as error:
        sys.stderr.write(f"run.py: error [{error.code}]: {error}\n")
        return error.code
    except KeyboardInterrupt:
        return INTERRUPTED
    _tell(" ".join(f"{name}: {state}." for name, state in states.items()))
    return 0 if set(states.values()) <= ({"done", "skipped"} if options.all else {"done"}) else 1


def job_of(options: argparse.Namespace) -> Job:
    """What was asked for."""
    return Job(
        out=options.out.absolute(),
        bundle_path=options.bundle,
        selection=Selection(options.precisions, options.forms, options.batches, options.steps),
        counts=Counts(options.runs, options.rounds, options.voices, options.seeds, options.portraits, options.warm),
        deadline=Deadline(options.seconds),
        speech=options.speech,
        workspace=options.workspace,
        optimisation=options.optimisation,
        torch_python=options.torch_python,
        torch_path=options.torch_path,
        torch_device=options.torch_device,
        network=options.network,
    )


def run(job: Job, name: str) -> str:
    """One piece in this process; returns its state. Raises InvalidArgument, OutputUnwritable, the BundleXxx errors."""
    piece, part = PIECES[name], Part(job.out, name, about(job, name))
    missing = [package for package in piece.needs if importlib.util.find_spec(package) is None]
    if missing:
        part.end("skipped", f"not installed here: {', '.join(missing)}")
    else:
        work: Callable[[Job, Part], None] = importlib.import_module(f"benchmarks.gpu.{piece.module}").measure
        run_part(part, lambda part: work(job, part))
    _tell(f"{name}: {part.data['state']} after {part.data['seconds']} s. {part.data['error'] or ''}".rstrip())
    return str(part.data["state"])


def run_all(job: Job, words: list[str]) -> dict[str, str]:
    """Every piece in a process of its own, which a crash or a time-out ends alone; returns their states.

    What is left of the time is divided among the pieces that are left by their weights.
    """
    states = {}
    for name, seconds in _shares(job.deadline):
        if seconds < LEAST:
            states[name] = "stopped"
            continue
        command = [sys.executable, str(SCRIPT), name, *_without_limits(words)]
        limit = [] if math.isinf(seconds) else ["--seconds", f"{seconds:.0f}"]
        try:
            subprocess.run([*command, *limit], check=False, timeout=None if math.isinf(seconds) else seconds + GRACE)
        except subprocess.TimeoutExpired:
            _tell(f"{name}: ended after {seconds + GRACE:.0f} s")
        states[name] = _ended(job, name)
    return states


def _shares(deadline: Deadline) -> Any:
    """(piece, seconds), divided anew before each."""
    names = list(PIECES)
    for index, name in enumerate(names):
        weights = [PIECES[other].weight for other in names[index:]]
        yield name, deadline.left * weights[0] / sum(weights)


def _ended(job: Job, name: str) -> str:
    """The state a piece's process left behind; one that still says "running" was killed, and then says so."""
    path = job.out / f"{name}.json"
    data = read_part(path)
    if data is None:
        return "failed"
    if data["state"] == "running":
        part = Part(job.out, name, {key: data[key] for key in ABOUT})
        part.data["doing"] = data["doing"]
        part.end("failed", "its process was killed or ran out of time")
        return "failed"
    return str(data["state"])


def _without_limits(words: list[str]) -> list[str]:
    """The command line without --all and --seconds."""
    kept = []
    skip = False
    for word in words:
        if not skip and word not in ("--all", "--seconds") and not word.startswith("--seconds="):
            kept.append(word)
        skip = not skip and word == "--seconds"
    return kept


ABOUT = ("place", "bundle", "machine", "versions", "asked")


def about(job: Job, name: str) -> JSON:
    """What results depend on. The table belongs to no place: it may be made anywhere."""
    return {
        "place": {} if name == "table" else place(),
        "bundle": {"name": job.bundle.manifest.name, "sha256": job.bundle.identity},
        "machine": {"cpu": cpu_model(), "usable_cores": usable_cores(), "load": load_average()},
        "versions": versions(),
        "asked": dataclasses.asdict(job.counts),
    }


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(part) for part in text.split(",")))


def _words(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(text.split(",")))
        if not set(words) <= set(known):
            raise argparse.ArgumentTypeError(f"choose of {','.join(known)}")
        return words

    return parse
