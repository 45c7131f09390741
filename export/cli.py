"""`s2f-export RUN_DIR -o BUNDLE`: a trained run to a bundle the runtime can open. `s2f-export engines`: see there."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from export import engines_cli
from export.options import STORES, ExportOptions
from runtime.bundle import SOLVERS
from runtime.errors import BackendMissing, InvalidArgument, OutputUnwritable, S2FError
from training.arms import ARMS, GUIDANCE, Arm

if TYPE_CHECKING:
    from export.pipeline import Exported

RESPECT = (
    "A voice does not determine a face. An exported bundle draws plausible portraits; it identifies nobody and is not "
    "for surveillance, identification or decisions about people."
)
INTERRUPTED = 130
NEEDED = ("torch", "diffusers", "safetensors", "onnx", "onnxruntime")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, which is the code of the error if there is one."""
    words = list(sys.argv[1:] if argv is None else argv)
    engines = words[:1] == ["engines"]  # a run of that name is ./engines
    arguments = engines_cli.parser().parse_args(words[1:]) if engines else _parser().parse_args(words)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="%(message)s")
    try:
        shown = engines_cli.run(arguments) if engines else _summary(_export(arguments))
    except S2FError as error:
        sys.stderr.write(f"s2f-export: error [{error.code}]: {error}\n")
        return error.code
    except OSError as error:  # files and folders that no check foresaw
        cure = "" if engines else "; choose another folder with -o"
        sys.stderr.write(f"s2f-export: error [{OutputUnwritable.code}]: {error}{cure}\n")
        return OutputUnwritable.code
    except KeyboardInterrupt:
        done = "engines finished before are kept" if engines else "no bundle was written"
        sys.stderr.write(f"s2f-export: interrupted; {done}\n")
        return INTERRUPTED
    sys.stdout.write(shown)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="s2f-export",
        description="Export a training run as a bundle: three ONNX graphs, everything fused, checked against torch. "
        "`s2f-export engines BUNDLE` builds the TensorRT engines of a bundle.",
        epilog=RESPECT,
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder that s2f-train wrote")
    parser.add_argument("-o", "--output", metavar="BUNDLE", type=Path, required=True, help="new folder for the bundle")
    parser.add_argument("--name", help="name of the bundle: a-z 0-9 . _ - (default: the configuration's name)")
    parser.add_argument(
        "--arm", default="auto", choices=("auto", *ARMS), help="which network (default: the few-step one if trained)"
    )
    parser.add_argument("--steps", help=f"step counts to make tables for (default: {_by_arm(lambda arm: arm.steps)})")
    parser.add_argument(
        "--default-steps",
        type=int,
        help=f"steps where a caller names none (default: {_by_arm(lambda arm: arm.default_steps)})",
    )
    parser.add_argument("--solver", choices=SOLVERS, help=f"default: {_by_arm(lambda arm: arm.solvers[0])}")
    parser.add_argument(
        "--store", default="float16", choices=STORES, help="weights in the files (default: %(default)s)"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        help=f"default guidance scale (default: {GUIDANCE:g}); the shortcut arm's is folded in",
    )
    parser.add_argument("--licence", default="Apache-2.0", help="licence of the weights (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    return parser


def _by_arm(option: Callable[[Arm], object]) -> str:
    values = {name: option(arm) for name, arm in ARMS.items()}
    shown = {arm: ",".join(map(str, value)) if isinstance(value, tuple) else value for arm, value in values.items()}
    return ", ".join(f"{value} for the {arm} arm" for arm, value in shown.items())


def _export(arguments: argparse.Namespace) -> Exported:
    for package in NEEDED:
        try:
            import_module(package)
        except ImportError as error:
            raise BackendMissing(
                f"s2f-export needs {package}; install it with: pip install 's2f-edge[export]'"
            ) from error
    from export.pipeline import export_run

    options = ExportOptions(
        name=arguments.name,
        arm=arguments.arm,
        steps=None if arguments.steps is None else _steps(arguments.steps),
        default_steps=arguments.default_steps,
        solver=arguments.solver,
        store=arguments.store,
        guidance=arguments.guidance,
        licence=arguments.licence,
        force=arguments.force,
    )
    return export_run(arguments.run_dir, arguments.output, options)


def _steps(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise InvalidArgument(f"--steps is {text!r}; give whole numbers with commas, such as 4,8,25") from error


def _summary(exported: Exported) -> str:
    parity = exported.parity
    lines = [f"{exported.path}: {exported.manifest.name}, identity {exported.identity}"]
    for row in parity.stages:
        stage = exported.manifest.stages[row.stage]
        unit = " levels" if row.stage == "decoder" else ""
        lines.append(
            f"  {stage.file:13} {stage.size / 1e6:8.2f} MB   parity {row.max_abs:.2g}{unit} over {row.cases} cases"
        )
    steps = ", ".join(str(n) for n in parity.chain_steps)
    lines.append(f"  whole chain, {steps} steps: at most {parity.chain_max_levels:g} levels from torch")
    return "\n".join(lines) + "\n"
