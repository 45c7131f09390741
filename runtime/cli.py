"""The command `s2f`: generate, prepare, info, verify, doctor, bench. Results go to stdout, errors to stderr."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import BackendFailed, BackendMissing, InvalidArgument, OutputUnwritable, S2FError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .bundle import Bundle
    from .pipeline import Pipeline
    from .portrait import Portrait

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
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {RESPECT}", epilog=EXIT)
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        made.set_defaults(command=command)
        return made

    _add_generate(add("generate", _generate, "draw portraits from speech"))
    prepare = add("prepare", _prepare, "make ready what a device needs before it draws, such as TensorRT's engines")
    prepare.epilog = (
        "tensorrt: builds the engines for this GPU, which takes a while; generate never builds. cuda: makes a fused "
        "graph in half precision, used if it is faster here. openvino: compiles the graphs and measures them beside "
        "ONNX Runtime; auto takes the faster from then on. What is made lies in the user's cache, or in the folder "
        f"S2F_CACHE, and serves from then on. With auto it is enough that one device can be prepared. {EXIT}"
    )
    info = add("info", _info, "show what a bundle is")
    verify = add("verify", _verify, "check a bundle: contract, sizes, hashes, graphs, one portrait")
    doctor = add("doctor", _doctor, "show which devices work here, which would be used and why not the others")
    bench = add("bench", _bench, "measure a bundle here, stage by stage")
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
    add("--anyway", action="store_true", help="compare also other bundles, steps, devices or threads")
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


def _generate(arguments: argparse.Namespace) -> int:
    """Every portrait is drawn and encoded before the first file is written."""
    from .output import write_files
    from .pipeline import load

    if not 1 <= arguments.n <= 10_000:
        raise InvalidArgument(f"--n must be in 1..10000, not {arguments.n}.")
    paths = plan_outputs(arguments.speech, Path(arguments.out), arguments.seed, arguments.n, arguments.format)
    seeds = range(arguments.seed, arguments.seed + arguments.n)
    with load(arguments.bundle, device=arguments.device, threads=arguments.threads) as pipeline:
        portraits = [portrait for speech in arguments.speech for portrait in _draw(pipeline, speech, seeds, arguments)]
    files = {path: p.encode(arguments.format or path.suffix) for path, p in zip(paths, portraits, strict=True)}
    made = _make_folder(paths[0].parent)
    try:
        write_files(files)
    except S2FError:
        for folder in made:
            with contextlib.suppress(OSError):  # what went wrong before is what the user must read
                folder.rmdir()
        raise
    for path, portrait in zip(paths, portraits, strict=True):
        sys.stdout.write(f"{path}  seed {portrait.seed}, {portrait.steps} steps, {portrait.timings.total:.1f} ms\n")
    return 0


def _draw(pipeline: Pipeline, speech: str, seeds: range, arguments: argparse.Namespace) -> list[Portrait]:
    return pipeline.generate(
        speech,
        steps=arguments.steps,
        seed=list(seeds),
        guidance=arguments.guidance,
        prior_weight=arguments.prior_weight,
        window=arguments.window,
    )


def plan_outputs(speech: Sequence[str], out: Path, seed: int, n: int, kind: str | None) -> list[Path]:
    """One path per portrait, inputs in order and their seeds within.

    OUT is a file if it has an image suffix and is no folder, which only one portrait can have; else a folder with a
    file per portrait, named after the input, with the seed if there are several, and a number where names meet.
    Raises InvalidArgument, OutputUnwritable.
    """
    from .portrait import FORMATS, SUFFIXES, format_of

    single = len(speech) * n == 1
    if out.suffix.lower() in FORMATS and not out.is_dir():
        if not single:
            problem = f"{len(speech) * n} portraits do not fit into the one file {out}."
            raise InvalidArgument(f"{problem} Give a folder as OUT.")
        return [out]
    if single and out.suffix and not out.is_dir():
        format_of(out)  # "portrait.bmp" is a mistake, not a folder
    if os.path.lexists(out) and not out.is_dir():
        raise OutputUnwritable(f"{out} is a file. Give a folder, or the name of an image file for one portrait.")
    taken: set[str] = set()
    paths = []
    for name in speech:
        for one in range(seed, seed + n):
            stem = Path(name).stem + (f"-{one}" if n > 1 else "")
            number, unique = 1, stem
            while unique.lower() in taken:  # some file systems do not tell a.png from A.png
                number += 1
                unique = f"{stem}-{number}"
            taken.add(unique.lower())
            paths.append(out / (unique + SUFFIXES[kind or "png"]))
    return paths


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and its missing parents; returns those made, innermost first. Raises OutputUnwritable."""
    missing = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"The folder {folder} cannot be made: {error.strerror}."
        raise OutputUnwritable(f"{problem} Choose a place where you may write.") from error
    return missing


def _prepare(arguments: argparse.Namespace) -> int:
    """Lines as they come: what is built may take minutes."""
    from .bundle import read_bundle
    from .pipeline import shipped_bundle
    from .prepare import prepare

    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    prepare(read_bundle(arguments.bundle or shipped_bundle()), arguments.device, tell)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from .bundle import read_manifest
    from .cache import Cache, Refused
    from .comparison import read_comparison
    from .pipeline import shipped_bundle

    manifest, identity = read_manifest(arguments.bundle or shipped_bundle())
    if arguments.json:
        return _print_json({"identity": identity, "manifest": manifest.to_json()})  # in the words of the newest schema
    size = sum(stage.size for stage in manifest.stages.values())
    guidance, prior, image = manifest.guidance, manifest.prior, manifest.image
    steps = ", ".join(f"{n} ({table.solver})" for n, table in sorted(manifest.step_tables.items()))
    facts = {
        "name": manifest.name,
        "identity": identity,
        "system": manifest.system,
        "portrait": f"{image.width} x {image.height} pixels",
        "speech": f"{manifest.audio.samples / manifest.audio.sample_rate:g} s at {manifest.audio.sample_rate} Hz",
        "steps": f"{steps}; default {manifest.default_steps}",
        "guidance": _limits(guidance.default, guidance.min, guidance.max),
        "prior": f"{prior.mode} at {'every step' if prior.inject == 'every' else 'the start'}, weight "
        + _limits(prior.weight, prior.min, prior.max),
        "graphs": f"{size / 1e6:.1f} MB in {len(manifest.stages)} files",
        "made by": manifest.generator,
        "licence": manifest.licence,
        "trained on": manifest.training_data,
    }
    with contextlib.suppress(Refused):  # which the doctor and "auto" tell of
        measured = read_comparison(Cache.default(), manifest)
        facts.update({"openvino": f"{measured} to ONNX Runtime, measured here"} if measured else {})
    sys.stdout.write("".join(f"{key:10} {value}\n" for key, value in facts.items()))
    return 0


def _limits(default: float, low: float, high: float) -> str:
    return f"{default:g}, folded in" if low == high else f"{low:g} to {high:g}; default {default:g}"


def _verify(arguments: argparse.Namespace) -> int:
    """Contract, sizes and hashes, then the graphs on a device, portraits of a synthetic voice, and the CPU's beside."""
    from .bench import synthetic_speech
    from .bundle import read_bundle
    from .pipeline import Pipeline, settings_for, shipped_bundle

    bundle, voice = read_bundle(arguments.bundle or shipped_bundle()), (synthetic_speech(), 16000)
    sys.stdout.write(f"{bundle.manifest.name} {bundle.identity}\n")
    sys.stdout.write("manifest, sizes, sha256, no external data: good\n")
    with Pipeline(bundle, settings_for(bundle.manifest, arguments.device, arguments.threads)) as pipeline:
        sys.stdout.write(f"graphs open on {pipeline.device} with the tensors of the manifest: good\n")
        drawn = {n: pipeline.generate(voice, steps=n).image for n in sorted(bundle.manifest.step_tables)}
        for steps in drawn:
            sys.stdout.write(f"a portrait in {steps} steps: good\n")
    if pipeline.device != "cpu":
        _compare_with_cpu(bundle, drawn)
    return 0


def _compare_with_cpu(bundle: Bundle, drawn: dict[int, npt.NDArray[np.uint8]]) -> None:
    """Another device's portraits of the synthetic voice, by steps, beside the CPU's. Raises BackendFailed."""
    from .bench import synthetic_speech
    from .pipeline import Pipeline, settings_for
    from .portrait import ALIKE_DB, psnr

    try:
        settings = settings_for(bundle.manifest, "cpu")
    except BackendMissing as reason:
        sys.stdout.write(f"not compared with the CPU: {reason}\n")
        return
    with Pipeline(bundle, settings) as cpu:
        worst = min(psnr(image, cpu.generate((synthetic_speech(), 16000), steps=n).image) for n, image in drawn.items())
    sys.stdout.write(f"PSNR to the CPU at least {worst:.1f} dB\n")
    if worst < ALIKE_DB:
        raise BackendFailed(
            f"This device draws something else than the CPU: {worst:.1f} dB PSNR, {ALIKE_DB:g} are needed. Prepare it "
            "anew, with --precision fp32 where it is tensorrt (s2f-export engines), and please report it"
        )


def _doctor(arguments: argparse.Namespace) -> int:
    """Exit status 0 if portraits can be drawn here, else the code of what is missing first."""
    from . import doctor
    from .errors import BackendMissing, BundleNotFound

    report = doctor.examine()
    if arguments.json:
        _print_json(doctor.to_json(report))
    else:
        sys.stdout.write(doctor.to_text(report))
    if report.chosen is None:
        return BackendMissing.code
    return 0 if report.bundle_usable else BundleNotFound.code


def _bench(arguments: argparse.Namespace) -> int:
    """A report, a comparison of two, or a report held against a baseline."""
    from . import bench
    from .output import check_writable, write_file

    if arguments.compare:
        first, second = map(bench.read_report, arguments.compare)
        return _compare_reports(arguments, first, second)
    if arguments.max_ratio is not None and arguments.baseline is None:
        raise InvalidArgument("--max-ratio needs a report to hold the run against. Give --baseline or --compare.")
    base = bench.read_report(bench.baseline(arguments.baseline)) if arguments.baseline else None
    if base is not None:
        _as_measured(arguments, base["settings"])
    if arguments.json:
        check_writable(arguments.json)
    report = bench.measure(
        arguments.bundle,
        device=arguments.device,
        threads=arguments.threads,
        steps=arguments.steps,
        runs=arguments.runs,
        warmup=arguments.warmup,
        cold=not arguments.warm_only,
        patience=arguments.patience,
        doubt=None if base is None or arguments.max_ratio is None else bench.doubt(base, arguments.max_ratio),
    )
    sys.stdout.write(bench.to_markdown(report) if arguments.markdown else bench.to_text(report))
    if arguments.json:
        write_file(arguments.json, bench.to_json(report).encode())
    if base is None:
        return 0
    sys.stdout.write("\n")
    return _compare_reports(arguments, base, report)


def _as_measured(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Where the user has not said otherwise, a run is like the one it is held against."""
    arguments.device = settings["device"] if arguments.device == "auto" else arguments.device
    arguments.threads = arguments.threads or settings["threads"]
    arguments.steps = arguments.steps or settings["steps"]


def _compare_reports(arguments: argparse.Namespace, first: dict[str, Any], second: dict[str, Any]) -> int:
    """The ratios go to stdout, also where the gate then fails."""
    from . import bench

    comparison = bench.compare(first, second, anyway=arguments.anyway)
    sys.stdout.write(bench.comparison_text(comparison))
    if arguments.max_ratio is not None:
        sys.stdout.write(f"\n{bench.gate(comparison, arguments.max_ratio)}\n")
    return 0


def _print_json(value: object) -> int:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    return 0


def _fail(code: int, message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"s2f: error [{code}]: {message}\n")
    return code
