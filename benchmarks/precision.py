"""What mixed precision changes: portraits and stages of the float16 graphs against the float32 ones, on the CPU.

    python -m benchmarks.precision [BUNDLE] --speech FOLDER -o OUT.json [--voices 64]

ONNX Runtime's CPU provider has few float16 kernels: it computes in float32 and leaves out the roundings between two of
its own Casts ("as run"). So every float16 graph is also run as a float32 graph in which each float16 tensor is rounded
where it is made ("rounded"): what a device does whose kernels accumulate in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from export.derive import derive
from export.half import LARGEST, LAYOUT
from export.simplify import element_types
from runtime.audio import load_speech
from runtime.bundle import STAGES, Bundle, Manifest, read_bundle
from runtime.errors import InvalidArgument, S2FError
from runtime.noise import seeded_noise
from runtime.output import check_writable, write_file
from runtime.pipeline import shipped_bundle
from runtime.portrait import psnr

VOICES = 64
RANGE_VOICES = 8  # that many are asked for every tensor
SUFFIXES = (".flac", ".wav")
ROUNDED, RAW = "_rounded", "_raw"

Arrays = dict[str, npt.NDArray[Any]]


def rounded(data: bytes) -> bytes:
    """A mixed-precision graph as a float32 graph that rounds to float16 wherever a float16 tensor is made."""
    model = onnx.load_from_string(data)
    types = element_types(shape_inference.infer_shapes(model, strict_mode=True))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Cast" and types[node.input[0]] == TensorProto.FLOAT16:
            nodes.append(helper.make_node("Identity", node.input, node.output))
        elif types[node.output[0]] != TensorProto.FLOAT16 or node.op_type in LAYOUT - {"Resize"}:
            nodes.append(node)
        else:
            nodes.extend(_with_rounding(node))
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()  # type: ignore[no-any-return]


def _with_rounding(node: NodeProto) -> list[NodeProto]:
    (name,) = node.output
    made = []
    if node.op_type == "Cast":
        raw = node.input[0]
    else:
        raw = node.output[0] = name + RAW
        made = [node]
    narrow = helper.make_node("Cast", [raw], [name + ROUNDED], to=TensorProto.FLOAT16)
    return [*made, narrow, helper.make_node("Cast", [name + ROUNDED], [name], to=TensorProto.FLOAT)]


def composition(data: bytes) -> dict[str, Any]:
    """What a graph is made of: bytes, nodes, Casts, and its other nodes by operator and type of their output."""
    model = onnx.load_from_string(data)
    types = element_types(shape_inference.infer_shapes(model, strict_mode=True))
    found: dict[int, Counter[str]] = {TensorProto.FLOAT: Counter(), TensorProto.FLOAT16: Counter()}
    for node in model.graph.node:
        if node.op_type != "Cast":
            found[types[node.output[0]]][node.op_type] += 1
    return {
        "bytes": len(data),
        "nodes": len(model.graph.node),
        "casts": sum(node.op_type == "Cast" for node in model.graph.node),
        "float32": dict(sorted(found[TensorProto.FLOAT].items())),
        "float16": dict(sorted(found[TensorProto.FLOAT16].items())),
    }


class Graph:
    """An ONNX file opened on the CPU with one thread."""

    def __init__(self, data: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, values: Arrays) -> Arrays:
        """Outputs by name; of `values` it takes what it has inputs for."""
        results = self._session.run(None, {name: values[name] for name in self._inputs})
        return dict(zip(self._outputs, results, strict=True))


def inputs(manifest: Manifest, voices: Sequence[Path]) -> list[Arrays]:
    """What the pipeline takes, for every voice with a seed of its own (its place in the list), at default options."""
    latent = manifest.latent
    shape = latent.channels, latent.height, latent.width
    options = {"guidance": manifest.guidance.default, "prior_weight": manifest.prior.weight}
    fixed = {name: np.array([value], np.float32) for name, value in options.items()}
    return [
        {"pcm": load_speech(voice)[None], "noise": seeded_noise(seed, shape)[None], **fixed}
        for seed, voice in enumerate(voices)
    ]


def portraits(bundle: Bundle, voices: list[Arrays]) -> dict[str, Any]:
    """PSNR of the mixed pipeline against the float32 one, for every number of steps and every voice."""
    found = {}
    for steps in bundle.manifest.step_tables:
        full = Graph(derive(bundle, "pipeline", batch=1, steps=steps, precision="fp32"))
        data = derive(bundle, "pipeline", batch=1, steps=steps, precision="fp16")
        graphs = {"as_run": Graph(data), "rounded": Graph(rounded(data))}
        values: dict[str, list[float]] = {name: [] for name in graphs}
        for voice in voices:
            reference = full.run(voice)["image"]
            for name, graph in graphs.items():
                values[name].append(psnr(graph.run(voice)["image"], reference))
        found[str(steps)] = {name: summary(psnrs) for name, psnrs in values.items()}
    return found


def summary(psnrs: list[float]) -> dict[str, Any]:
    """Minimum, median and all values, to a tenth of a dB."""
    rounded_values = [round(value, 1) for value in psnrs]
    return {"min": min(rounded_values), "median": round(float(np.median(psnrs)), 1), "db": rounded_values}


def stages(bundle: Bundle, voices: list[Arrays]) -> dict[str, Any]:
    """Error of every stage given the float32 inputs of the default schedule, and the largest numbers float16 meets.

    encoder, unet: relative (2-norm of the difference by that of the float32 output); decoder: grey levels.
    """
    full = {stage: Graph(derive(bundle, stage, batch=1, precision="fp32")) for stage in STAGES}
    mixed = {stage: derive(bundle, stage, batch=1, precision="fp16") for stage in STAGES}
    graphs = {stage: Graph(rounded(data)) for stage, data in mixed.items()}
    probes = {stage: Graph(with_all_tensors(rounded(data))) for stage, data in mixed.items()}
    errors: dict[str, list[float]] = {stage: [] for stage in STAGES}
    largest = dict.fromkeys(STAGES, 0.0)
    for index, voice in enumerate(voices):
        for stage, values, output in chain(bundle.manifest, full, voice):
            reference = full[stage].run(values)[output].astype(np.float64)
            difference = graphs[stage].run(values)[output] - reference
            scale = 1.0 if stage == "decoder" else float(np.linalg.norm(reference))
            size = np.abs(difference).max() if stage == "decoder" else np.linalg.norm(difference)
            errors[stage].append(float(size) / scale)
            if index < RANGE_VOICES:
                seen = probes[stage].run(values)
                inside = [float(np.abs(value).max()) for name, value in seen.items() if name.endswith(ROUNDED)]
                largest[stage] = max(largest[stage], *inside)
    return {
        stage: {
            "error": "grey levels, largest" if stage == "decoder" else "relative",
            "median": _digits(float(np.median(errors[stage]))),
            "max": _digits(max(errors[stage])),
            "largest_float16": _digits(largest[stage]),
            "of_range": _digits(largest[stage] / LARGEST),
        }
        for stage in STAGES
    }


def chain(manifest: Manifest, full: dict[str, Graph], voice: Arrays) -> list[tuple[str, Arrays, str]]:
    """(stage, its inputs, the output that counts) for all runs that make one portrait in float32."""
    calls = [("encoder", voice, "condition")]
    state = {"latent": voice["noise"], "history": np.zeros_like(voice["noise"])}
    condition = full["encoder"].run(voice)
    table = manifest.table()
    for step in range(len(table.timesteps)):
        row = np.array([table.first_row + step], np.int32)
        values = {**voice, **condition, **state, "step": row}
        calls.append(("unet", values, "latent_next"))
        state = {name.removesuffix("_next"): value for name, value in full["unet"].run(values).items()}
    return [*calls, ("decoder", state, "image")]


def with_all_tensors(data: bytes) -> bytes:
    """The same graph, with everything that is rounded to float16 as further outputs."""
    model: ModelProto = onnx.load_from_string(data)
    names = [name for node in model.graph.node for name in node.output if name.endswith(ROUNDED)]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in names)
    return model.SerializeToString()  # type: ignore[no-any-return]


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def graphs_of(bundle: Bundle) -> dict[str, Any]:
    """The composition of every mixed graph for batch 1, pipelines by their number of steps."""
    found = {stage: composition(derive(bundle, stage, batch=1)) for stage in STAGES}
    for steps in bundle.manifest.step_tables:
        found[f"pipeline_{steps}"] = composition(derive(bundle, "pipeline", batch=1, steps=steps))
    return found


def find_voices(folder: Path, count: int) -> list[Path]:
    """The first `count` recordings of a folder by name. Raises InvalidArgument if it holds fewer."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if len(found) < count:
        raise InvalidArgument(f"{folder} holds {len(found)} FLAC or WAV files; {count} are wanted (--voices).")
    return found[:count]


def table(report: dict[str, Any]) -> str:
    """Markdown: PSNR by number of steps."""
    lines = ["| steps | as run, min (median) dB | rounded, min (median) dB |", "|---|---|---|"]
    for steps, found in report["portraits"].items():
        cells = [f"{found[name]['min']} ({found[name]['median']})" for name in ("as_run", "rounded")]
        lines.append(f"| {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(path: Path, speech: Path, count: int) -> dict[str, Any]:
    """The whole report. Raises the BundleXxx and AudioXxx errors, InvalidArgument, BackendFailed."""
    bundle = read_bundle(path)
    voices = inputs(bundle.manifest, find_voices(speech, count))
    return {
        "bundle": {"name": bundle.manifest.name, "sha256": bundle.identity},
        "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__},
        "voices": count,
        "portraits": portraits(bundle, voices),
        "stages": stages(bundle, voices),
        "graphs": graphs_of(bundle),
    }


def main() -> int:
    """Measures, prints the table and writes the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, default=None, help="folder; left out: the demo bundle")
    parser.add_argument("--speech", type=Path, required=True, help="folder of FLAC or WAV files, one voice each")
    parser.add_argument("--voices", type=int, default=VOICES)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        check_writable(options.out)
        report = measure(options.bundle or shipped_bundle(), options.speech, options.voices)
        write_file(options.out, (json.dumps(report, indent=1) + "\n").encode())
    except S2FError as error:
        sys.stderr.write(f"precision: error [{error.code}]: {error}\n")
        return error.code
    sys.stdout.write(table(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
