"""What a bundle may cost on each Jetson: an ESTIMATE from counted operations and bytes, nothing measured on a Jetson.

python benchmarks/jetson_estimate.py [BUNDLE]      counts again, writes the JSON and the tables in docs/jetson.md
python benchmarks/jetson_estimate.py --table       prints the tables of the JSON that is there

For every stage: time of its matrix work at the published peak, of its bytes at the published bandwidth (weights once
per run, activations with pointwise nodes fused, no cache), of its kernels at 1.5 and 5 µs each. The floor is the
largest of the three, and stages run one after the other. The expected range takes 15 % and 5 % of the peak instead of
all of it, around the 7.5 % that one published run of a small network comes to; float32 work, on the CUDA cores, at that
rate or their peak.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from export.cost import count
from export.presets import PRESETS, Figures, Preset
from runtime.bundle import STAGES, Bundle, read_bundle
from runtime.errors import S2FError
from runtime.output import write_files
from runtime.pipeline import shipped_bundle

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "jetson-estimate.json"
DOCS = ROOT / "docs" / "jetson.md"
BEGIN, END = "<!-- estimate: begin -->", "<!-- estimate: end -->"
PRECISION = "fp16"
LAUNCH_US = (1.5, 5.0)
ACHIEVED = (0.15, 0.05)
LABEL = "ESTIMATE from counted operations and bytes; nothing here was measured on a Jetson"

JSON = dict[str, Any]


def count_bundle(bundle: Bundle, batches: Iterable[int]) -> JSON:
    """Costs of every derived graph: `stages` by batch and name, `pipeline` of batch 1 by number of steps."""
    from export.derive import derive

    def cost(graph: str, batch: int, steps: int = 0) -> JSON:
        counted = count(derive(bundle, graph, batch=batch, steps=steps, precision=PRECISION))
        return dataclasses.asdict(counted) | {"flops": counted.flops, "weight_bytes": counted.weight_bytes}

    return {
        "stages": {str(batch): {name: cost(name, batch) for name in STAGES} for batch in batches},
        "pipeline": {str(steps): cost("pipeline", 1, steps) for steps in sorted(bundle.manifest.step_tables)},
    }


def estimate(bundle: Bundle) -> JSON:
    """Everything the tables show, for the presets that are one device."""
    devices = [preset for preset in PRESETS.values() if preset.figures is not None]
    counts = count_bundle(bundle, sorted({batch for preset in devices for batch in preset.batches}))
    steps = sorted(bundle.manifest.step_tables)
    default = bundle.manifest.default_steps
    return {
        "label": LABEL,
        "bundle": {"name": bundle.manifest.name, "identity": bundle.identity, "default_steps": default},
        "precision": PRECISION,
        "assumptions": {
            "launch_us": LAUNCH_US,
            "achieved_share_of_peak": ACHIEVED,
            "weights_cached_between_steps": False,
        },
        "counts": counts,
        "devices": {preset.name: _device(preset, counts, steps, default) for preset in devices},
    }


def _device(preset: Preset, counts: JSON, steps: list[int], default: int) -> JSON:
    figures = preset.figures
    if figures is None:
        raise ValueError(preset.name)
    stages = {name: times(cost, figures) for name, cost in counts["stages"]["1"].items()}
    return {
        "device": preset.device,
        "figures": dataclasses.asdict(figures) | {"fp32_tflops": round(figures.fp32_tflops, 3)},
        "stages_ms": stages,
        "end_to_end_ms": {str(n): chain(stages, n) for n in steps},
        "memory": memory(preset, counts, default),
    }


def times(cost: JSON, figures: Figures) -> JSON:
    """Milliseconds of one stage: the three terms, the floor and the expected range."""
    peak = {"float16": figures.fp16_tflops, "float32": figures.fp32_tflops}

    def compute(share: float) -> float:
        """float32 work at the same rate as float16, but never faster than the CUDA cores."""
        rates = {kind: min(most, share * figures.fp16_tflops) * 1e9 for kind, most in peak.items()}
        return float(sum(operations / rates[kind] for kind, operations in cost["matrix"].items()))

    bandwidth = (cost["weight_reads"] + cost["fused_activation_bytes"]) / (figures.bandwidth * 1e6)
    launch = [cost["kernels"] * each / 1000 for each in LAUNCH_US]
    terms = {"compute": compute(1), "bandwidth": bandwidth, "launch": launch}
    floor = max(compute(1), bandwidth, launch[0])
    expected = [max(compute(share), bandwidth, each) for share, each in zip(ACHIEVED, launch, strict=True)]
    return _rounded({**terms, "floor": floor, "expected": expected})


def chain(stages: JSON, steps: int) -> JSON:
    """Floor and expected range of a portrait: encoder, `steps` times the unet, decoder, one after the other."""
    runs = [(stages["encoder"], 1), (stages["unet"], steps), (stages["decoder"], 1)]
    floor = sum(stage["floor"] * often for stage, often in runs)
    expected = [sum(stage["expected"][end] * often for stage, often in runs) for end in (0, 1)]
    return _rounded({"floor": floor, "expected": expected})


def memory(preset: Preset, counts: JSON, default: int) -> JSON:
    """Bytes that the preset's engines hold while they are open: all their weights, and the largest's working memory.

    All engines share one working memory. Not in it, because not known: the CUDA context, TensorRT's own libraries, the
    scratch memory of the kernels TensorRT picks.
    """
    engines = [cost for batch in preset.batches for cost in counts["stages"][str(batch)].values()]
    if "pipeline" in preset.forms:
        engines.append(counts["pipeline"][str(default)])
    return {
        "module_mib": preset.memory_mib,
        "batches": preset.batches,
        "forms": preset.forms,
        "weights": sum(cost["weight_bytes"] for cost in engines),
        "working": max(cost["peak_activation_bytes"] for cost in engines),
        "build_workspace_limit_mib": preset.workspace_mib,
    }


def _rounded(values: JSON) -> JSON:
    return {
        key: [round(one, 5) for one in value] if isinstance(value, list) else round(value, 5)
        for key, value in values.items()
    }


def tables(result: JSON) -> str:
    """The tables as Markdown, from the JSON."""
    bundle = result["bundle"]
    parts = [
        f"**{result['label']}.**",
        f"Bundle `{bundle['name']}` ({bundle['identity'][:12]}), {result['precision']}, batch 1. Counted per run:",
        _counted(result["counts"]),
        "Milliseconds per stage, floor and expected range:",
        _per_stage(result["devices"]),
        "Milliseconds from PCM to pixels, floor and expected range:",
        _end_to_end(result["devices"]),
        f"Memory of the engines each preset builds, the pipeline for {bundle['default_steps']} steps and batch 1:",
        _memory(result["devices"]),
    ]
    return "\n\n".join(parts) + "\n"


def _counted(counts: JSON) -> str:
    rows = {**counts["stages"]["1"], **{f"pipeline, {n} steps": cost for n, cost in counts["pipeline"].items()}}
    cells = [
        (
            name.replace(", 1 steps", ", 1 step"),
            f"{cost['flops'] / 1e9:.2f}",
            f"{100 * cost['matrix'].get('float32', 0) / cost['flops']:.1f} %",
            *(f"{cost[key] / 1e6:.1f}" for key in ("weight_bytes", "activation_bytes", "fused_activation_bytes")),
            f"{cost['peak_activation_bytes'] / 1e6:.2f}",
            f"{cost['nodes']}",
            f"{cost['kernels']}",
        )
        for name, cost in rows.items()
    ]
    heads = ("GFLOP", "of it float32", "weights MB", "traffic MB", "fused", "peak MB", "nodes", "kernels")
    return _table(("graph", *heads), cells)


def _per_stage(devices: JSON) -> str:
    cells = [
        (
            entry["device"],
            f"{entry['figures']['fp16_tflops']:g} / {entry['figures']['bandwidth']:g}",
            *(_range(entry["stages_ms"][stage]) for stage in STAGES),
        )
        for entry in devices.values()
    ]
    return _table(("device", "TFLOP/s / GB/s", "encoder", "one step", "decoder"), cells)


def _end_to_end(devices: JSON) -> str:
    counts = list(next(iter(devices.values()))["end_to_end_ms"])
    heads = [f"{n} step" if n == "1" else f"{n} steps" for n in counts]
    cells = [(entry["device"], *(_range(entry["end_to_end_ms"][n]) for n in counts)) for entry in devices.values()]
    return _table(("device", *heads), cells)


def _memory(devices: JSON) -> str:
    cells = []
    for entry in devices.values():
        held = entry["memory"]
        batches = ", ".join(str(batch) for batch in held["batches"])
        sizes = (f"{held[key] / 1e6:.0f} MB" for key in ("weights", "working"))
        limit = f"{held['build_workspace_limit_mib']} MiB"
        module = f"{held['module_mib'] // 1024} GB"
        cells.append((entry["device"], module, batches, " and ".join(held["forms"]), *sizes, limit))
    heads = ("device", "memory", "batches", "forms", "weights", "working memory", "workspace limit, while building")
    return _table(heads, cells)


def _range(entry: JSON) -> str:
    low, high = (_short(end) for end in entry["expected"])
    return f"{_short(entry['floor'])}; {low} to {high}"


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 1 else f"{milliseconds:.1f}"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_tables(document: str, text: str) -> str:
    """The document with `text` between its markers. ValueError where they are not there, each once."""
    before, found, rest = document.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended or BEGIN in after or END in after:
        raise ValueError(f"{DOCS.name} has not one {BEGIN} and one {END} after it")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def main() -> int:
    """Writes JSON and docs, or prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="default: the shipped demo")
    parser.add_argument("--table", action="store_true", help="only print the tables of the JSON that is there")
    options = parser.parse_args()
    if options.table:
        sys.stdout.write(tables(json.loads(RESULT.read_text(encoding="utf-8"))))
        return 0
    try:
        result = estimate(read_bundle(options.bundle or shipped_bundle()))
        text = json.dumps(result, indent=1) + "\n"
        document = with_tables(DOCS.read_text(encoding="utf-8"), tables(json.loads(text)))
        write_files({RESULT: text.encode(), DOCS: document.encode()})
    except S2FError as error:
        sys.stderr.write(f"jetson_estimate: error [{error.code}]: {error}\n")
        return error.code
    sys.stdout.write(tables(json.loads(text)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
