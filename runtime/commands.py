"""What the commands of `s2f` do: each takes parsed arguments (`runtime.cli`) and returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BackendFailed, BackendMissing, InvalidArgument, OutputUnwritable, S2FError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .bundle import Bundle, Manifest
    from .pipeline import Pipeline
    from .portrait import Portrait


def generate(arguments: argparse.Namespace) -> int:
    """Every portrait is drawn and encoded before the first file is written."""
    from .output import write_files
    from .pipeline import load

    if not 1 <= arguments.n <= 10_000:
        raise InvalidArgument(f"--n must be in 1..10000, not {arguments.n}.")
    paths = plan_outputs(arguments.speech, Path(arguments.out), arguments.seed, arguments.n, arguments.format)
    seeds = range(arguments.seed, arguments.seed + arguments.n)
    options = {"device": arguments.device, "threads": arguments.threads, "precision": arguments.precision}
    with load(arguments.bundle, **options) as pipeline:
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


def prepare(arguments: argparse.Namespace) -> int:
    """Lines as they come: what is built may take minutes."""
    from .bundle import read_bundle
    from .pipeline import shipped_bundle
    from .prepare import prepare

    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    prepare(read_bundle(arguments.bundle or shipped_bundle()), arguments.device, tell)
    return 0


def info(arguments: argparse.Namespace) -> int:
    from .bundle import read_manifest
    from .cache import Cache, Refused
    from .pipeline import shipped_bundle
    from .standing import read_standing

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
    facts.update(_variants(manifest))
    with contextlib.suppress(Refused):  # which the doctor and "auto" tell of
        measured = read_standing(Cache.default(), manifest)
        facts.update({"openvino": f"{measured}, measured here"} if measured else {})
    sys.stdout.write("".join(f"{key:10} {value}\n" for key, value in facts.items()))
    return 0


def _variants(manifest: Manifest) -> dict[str, str]:
    """A line per quantised variant, by family."""
    return {
        family: f"{sum(ref.size for ref in one.stages.values()) / 1e6:.1f} MB for {', '.join(one.stages)}; gate "
        f"{one.gate}, PSNR {one.psnr:.1f} dB and cosine {one.cosine:.3f} to float32 over {one.pairs} pairs"
        for family, one in manifest.variants.items()
    }


def _limits(default: float, low: float, high: float) -> str:
    return f"{default:g}, folded in" if low == high else f"{low:g} to {high:g}; default {default:g}"


def verify(arguments: argparse.Namespace) -> int:
    """Contract, sizes and hashes, then the graphs on a device, portraits of a synthetic voice, and the CPU's beside."""
    from .bench import synthetic_speech
    from .bundle import read_bundle, verify_variants
    from .pipeline import Pipeline, read_for, settings_for, shipped_bundle

    own, voice = read_bundle(arguments.bundle or shipped_bundle()), (synthetic_speech(), 16000)
    sys.stdout.write(f"{own.manifest.name} {own.identity}\n")
    sys.stdout.write("manifest, sizes, sha256, no external data: good\n")
    verify_variants(own)
    for family in own.manifest.variants:
        sys.stdout.write(f"the same of the variant {family}: good\n")
    settings = settings_for(own.manifest, arguments.device, arguments.threads, arguments.precision)
    with Pipeline(read_for(own.path, settings), settings) as pipeline:
        where = f"{pipeline.device} in {pipeline.precision}"
        sys.stdout.write(f"graphs open on {where} with the tensors of the manifest: good\n")
        drawn = {n: pipeline.generate(voice, steps=n).image for n in sorted(own.manifest.step_tables)}
        for steps in drawn:
            sys.stdout.write(f"a portrait in {steps} steps: good\n")
    if (pipeline.device, pipeline.precision) != ("cpu", "fp32"):
        _compare_with_cpu(own, drawn, pipeline.precision)
    return 0


def _compare_with_cpu(own: Bundle, drawn: dict[int, npt.NDArray[np.uint8]], precision: str) -> None:
    """Portraits of the synthetic voice, by steps, beside those of the bundle's own graphs on the CPU in float32.

    Raises BackendFailed where they are others.
    """
    from .bench import synthetic_speech
    from .pipeline import Pipeline, settings_for
    from .portrait import alike_db, psnr

    try:
        settings = settings_for(own.manifest, "cpu", None, "fp32")
    except BackendMissing as reason:
        sys.stdout.write(f"not compared with the CPU: {reason}\n")
        return
    with Pipeline(own, settings) as cpu:
        worst = min(psnr(image, cpu.generate((synthetic_speech(), 16000), steps=n).image) for n, image in drawn.items())
    sys.stdout.write(f"PSNR to the CPU in fp32 at least {worst:.1f} dB\n")
    if worst < alike_db(precision):
        anew = "Prepare it anew, with --precision fp32 where it is tensorrt (s2f-export engines)"
        cure = "Calibrate it anew (s2f-calibrate)" if precision == "int8" else anew
        raise BackendFailed(
            f"In {precision} this device draws something else than the CPU in fp32: {worst:.1f} dB PSNR, "
            f"{alike_db(precision):g} are needed. {cure}, and please report it"
        )


def doctor(arguments: argparse.Namespace) -> int:
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


def bench(arguments: argparse.Namespace) -> int:
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
        precision=arguments.precision,
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
    arguments.precision = settings["precision"] if arguments.precision == "auto" else arguments.precision
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
