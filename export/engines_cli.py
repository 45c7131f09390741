"""`s2f-export engines BUNDLE`: TensorRT engines as an engineer wants them. `s2f prepare` does the same by preset."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from export.presets import FORMS, PRESETS, Preset, board, detect, preset
from runtime.backends import cuda
from runtime.bundle import Bundle, read_bundle
from runtime.cache import Cache
from runtime.engines import PRECISIONS
from runtime.errors import BackendMissing, InvalidArgument
from runtime.output import check_writable
from runtime.pipeline import shipped_bundle

if TYPE_CHECKING:
    from export.engines import Request


def parser() -> argparse.ArgumentParser:
    """The command line of `s2f-export engines`; what is not given comes from the preset."""
    made = argparse.ArgumentParser(
        prog="s2f-export engines",
        description="Build the TensorRT engines of a bundle on the device they are to run on, into the cache that "
        "`generate` reads. Needs TensorRT, pycuda and onnx, no torch.",
        epilog="The same command goes on where it was broken off. The engines serve the bundle from then on.",
    )
    add = made.add_argument
    add("bundle", nargs="?", metavar="BUNDLE", type=Path, help="folder of the bundle; default: the shipped demo")
    add(
        "--device",
        choices=tuple(PRESETS),
        help="limits of this preset instead of the one that fits; engines are always for the GPU that is here",
    )
    add("--batch", metavar="N,…", help="batch sizes, such as 1,4 (default: the preset's; 1 is always built)")
    add("--steps", metavar="N,…", help="step counts to build the whole pipeline for (default: the bundle's default)")
    add("--forms", metavar="F,…", help=f"of {','.join(FORMS)} (default: the preset's); the stages are always built")
    add(
        "--precision",
        choices=PRECISIONS,
        help="of the graphs the engines are made of (default: the preset's, fp16); int8: a bundle s2f-calibrate made",
    )
    add("--workspace", type=int, metavar="MIB", help="limit of scratch memory while building (default: the preset's)")
    add("--optimisation", type=int, metavar="0-5", help="how long to look for fast kernels; TensorRT's default is 3")
    add("--lean", action="store_true", help="version-compatible engines for the run-only package tensorrt_lean")
    add("--report", type=Path, metavar="FILE", help="write what TensorRT says of every layer, as JSON")
    add("-v", "--verbose", action="store_true", help="also say what TensorRT says")
    return made


def run(arguments: argparse.Namespace) -> str:
    """Build; returns what is to be shown at the end. Raises what `export.engines.build` raises, InvalidArgument."""
    try:
        from export.adaptor import builder_package
        from export.engines import build
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise BackendMissing("s2f-export engines needs the package onnx. Run: pip install onnx") from error

    builder_package()
    bundle = read_bundle(arguments.bundle or shipped_bundle())
    if arguments.report is not None:
        check_writable(arguments.report)
    build(bundle, _request(arguments, bundle), Cache.default(), _tell, report=arguments.report)
    return f"{bundle.path}: engines for {bundle.manifest.name} are in {Cache.default().folder}\n"


def _request(arguments: argparse.Namespace, bundle: Bundle) -> Request:
    from export.engines import Request

    chosen = _preset(arguments.device)
    forms = chosen.forms if arguments.forms is None else tuple(arguments.forms.split(","))
    if not set(forms) <= set(FORMS):
        raise InvalidArgument(f"--forms is {arguments.forms!r}; give {' or '.join(FORMS)}, or both with a comma")
    chosen = dataclasses.replace(
        chosen,
        forms=forms,
        precision=arguments.precision or chosen.precision,
        batches=chosen.batches if arguments.batch is None else _numbers("--batch", arguments.batch),
        workspace_mib=chosen.workspace_mib if arguments.workspace is None else arguments.workspace,
        optimisation=chosen.optimisation if arguments.optimisation is None else arguments.optimisation,
    )
    if "pipeline" not in forms and arguments.steps is not None:
        raise InvalidArgument("--steps is for the form pipeline, which --forms or the preset leaves out; add it there")
    request = Request.of(chosen, bundle)
    options = dataclasses.replace(request.options, lean=arguments.lean, detailed=arguments.report is not None)
    steps = request.steps if arguments.steps is None else _numbers("--steps", arguments.steps)
    return dataclasses.replace(request, steps=steps, options=options)


def _preset(name: str | None) -> Preset:
    """The preset named, or that of this device. Raises DeviceUnavailable, BackendMissing, InvalidArgument."""
    if name is not None:
        return preset(name)
    gpu = cuda.describe()
    return detect(board(), gpu.capability, gpu.memory)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise InvalidArgument(f"{option} is {text!r}; give whole numbers with commas, such as 1,4") from error


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
