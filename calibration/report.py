"""The report of a calibration: report.md for a reader, tables as CSV, all of it as JSON, plots, sheets of portraits."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.calibrate import Calibration, Result
from calibration.plan import Sensitivity, worst_first
from calibration.quality import Quality
from runtime.output import write_file
from runtime.portrait import encode_marked

LIMITS = (
    "A voice does not determine a face. These are plausible portraits, compared with each other and with nobody; they "
    "identify nobody and are not for surveillance."
)
ROWS = 6  # of a sheet of portraits
AMPLIFIED = 8
COLOURS = {"encoder": "#1f4e79", "unet": "#c55a11", "decoder": "#548235"}


@dataclass(frozen=True)
class Told:
    """What a report says beside the numbers. `facts`: lines of a table by name; `gates`: the word of the manifest by
    family; `sizes`: bytes of the graphs by row ("float32" and the families); `latency`: milliseconds of a portrait by
    device, precision and threads.
    """

    title: str
    facts: Mapping[str, str]
    gates: Mapping[str, str]
    sizes: Mapping[str, int]
    latency: Mapping[tuple[str, str, int], float]


def write_report(folder: Path, found: Calibration, told: Told) -> None:
    """Write all files of the report into a folder that exists. Raises OutputUnwritable."""
    files = {
        "report.md": _markdown(found, told).encode(),
        "layers.csv": _csv((*_LAYER_COLUMNS, *(one.family for one in found.results)), _layer_rows(found)),
        "variants.csv": _csv(_VARIANT_COLUMNS, _variant_rows(found, told)),
        "report.json": _rows(_json(found, told)),
        "sensitivity.png": _sensitivity_plot(found),
        "steps.png": _steps_plot(found),
        **{f"portraits-{one.family}.jpg": _sheet(found, one) for one in found.results if one.quality.pairs},
    }
    for stale in folder.glob("portraits-*.jpg"):
        stale.unlink()
    for name, data in files.items():
        write_file(folder / name, data)


_LAYER_COLUMNS = ("stage", "layer", "group", "operator", "operations", "psnr_mean", "psnr_least", "damage")
_VARIANT_COLUMNS = (
    *(
        "variant",
        "psnr_mean",
        "psnr_1_percent",
        "psnr_least",
        "cosine_mean",
        "cosine_least",
        "perceptual",
        "sex",
        "age",
    ),
    *("attributes", "kid", "growth", "plain_growth", "bytes"),
)


def _layer_rows(found: Calibration) -> list[tuple[Any, ...]]:
    """A row per layer, the one that is given back first on top; a column per family: what it computes in and why."""
    return [
        (
            *(one.layer.stage, one.layer.name, one.layer.group, one.layer.operator, one.operations),
            *(f"{np.mean(one.psnr):.2f}", f"{min(one.psnr):.2f}", f"{one.damage:.4g}"),
            *(_reason(one, result) for result in found.results),
        )
        for one in _sorted(found)
    ]


def _reason(one: Sensitivity, result: Result) -> str:
    if one.layer.name in result.plan.chosen[one.layer.stage]:
        return "int8"
    return f"float32: {one.layer.keep or 'given back to meet the gate'}"


def _variant_rows(found: Calibration, told: Told) -> list[tuple[Any, ...]]:
    rows = [_row("float32 as stored", found.stored, told.sizes["float32"])]
    for result in found.results:
        rows.append(_row(result.family, result.quality, told.sizes[result.family]))
        rows.append(_row(f"{result.family}, everything", result.everything, None))
    return rows


def _row(name: str, quality: Quality, size: int | None) -> tuple[Any, ...]:
    if not quality.pairs:
        return (name, *[""] * (len(_VARIANT_COLUMNS) - 2), size or "")
    psnr, cosine = quality.psnr, quality.cosine
    grown = max((b / a for a, b in pairwise(quality.plain_errors) if a > 0), default=0.0)
    return (
        *(name, f"{psnr.mean():.2f}", f"{np.percentile(psnr, 1):.2f}", f"{psnr.min():.2f}"),
        *(f"{cosine.mean():.4f}", f"{cosine.min():.4f}", f"{quality.perceptual.mean():.4f}"),
        *(f"{quality.sex:.1f}", f"{quality.age:.1f}", f"{quality.attributes:.1f}", f"{quality.kid:.2f}"),
        *(f"{quality.growth:.2f}", f"{grown:.2f}", size or ""),
    )


def _markdown(found: Calibration, told: Told) -> str:
    lines = [f"# {told.title}", "", LIMITS, ""]
    lines += _table(("", ""), told.facts.items())
    lines += ["", "## Variants", ""]
    lines += _table([name.replace("_", " ") for name in _VARIANT_COLUMNS], _variant_rows(found, told))
    lines += ["", _LEGEND, "", "![Growth of the error over the steps](steps.png)", ""]
    for result in found.results:
        lines += [f"**{result.family}**: {told.gates[result.family]}.", *(f"- {miss}" for miss in result.misses), ""]
        if result.quality.pairs:
            lines += [
                f"![float32, {result.family}, difference × {AMPLIFIED}](portraits-{result.family}.jpg)",
                "",
                "*From the worst pair to the median.*",
                "",
            ]
    if told.latency:
        lines += ["## Time", "", *_latency(told), ""]
    lines += ["## Layers", "", _SENSITIVITY, "", "![Each layer alone](sensitivity.png)", ""]
    lines += [_GROUPS.format(found.results[0].family), ""]
    rows = [(name, f"{np.mean(psnr):.1f}", f"{min(psnr):.1f}") for name, psnr in found.groups.items()]
    lines += [*_table(("group", "PSNR, dB", "worst"), sorted(rows, key=lambda row: float(row[1]))), ""]
    for result in found.results:
        methods = ", ".join(f"{stage} {method}" for stage, method in result.plan.methods.items())
        counts = ", ".join(f"{len(result.plan.chosen[s])} of {len(found.layers[s])} in the {s}" for s in found.layers)
        lines += [f"{result.family}: ranges by {methods}; in eight bits {counts}. The rest, in float32:", ""]
        kept = [one for one in _sorted(found) if one.layer.name not in result.plan.chosen[one.layer.stage]]
        lines += [f"- {one.layer}: {_reason(one, result).removeprefix('float32: ')}" for one in kept]
        lines += [f"- {layer}: all it reads is zero" for layer in found.dead] + [""]
    return "\n".join(lines)


_LEGEND = (
    "Against the float32 portraits of the same voices and seeds; none was calibrated on. PSNR in dB; cosine of the "
    "judge's features; perceptual: a Laplacian pyramid's distance, standing in for LPIPS; sex, age (within five "
    "years) and attributes (within half a deviation): per cent that agree by the judge; KID × 1000; growth: how much "
    "the latent's error, relative to the way the sampler has come from the noise, grows from a step to the next; plain "
    "growth: the same relative to the latent itself, which grows in any precision, because the noise that both share "
    "fades. “Everything”: what is kept in float32 by default is quantised too, ranges by min-max."
)
_GROUPS = "If all layers of a group are quantised and nothing else ({}):"
_SENSITIVITY = (
    "What each layer does to the portraits if it alone is quantised, as in the first variant, sorted by damage per "
    "multiply-add: from the left they are given back to float32 until the gate is met. Every number is in "
    "[layers.csv](layers.csv)."
)


def _latency(told: Told) -> list[str]:
    """A table with a column per number of threads."""
    counts = sorted({threads for _, _, threads in told.latency})
    kinds = list(dict.fromkeys((device, precision) for device, precision, _ in told.latency))
    rows = [(f"{d}, {p}", *(f"{told.latency[d, p, n]:.1f}" for n in counts)) for d, p in kinds]
    heads = ("ms, one portrait, medians of one run", *(f"{n} thread{'s' if n > 1 else ''}" for n in counts))
    return _table(heads, rows)


def _table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    titles = list(heads)
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    return lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def _rows(value: dict[str, Any]) -> bytes:
    """JSON with a line per key, and per layer: a diff shows what changed."""
    lines = []
    for key, item in value.items():
        inner = [json.dumps(one) for one in item] if isinstance(item, list) else []
        text = "[\n  " + ",\n  ".join(inner) + "\n ]" if inner else json.dumps(item)
        lines.append(f" {json.dumps(key)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _json(found: Calibration, told: Told) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "s2f-calibration",
        "facts": dict(told.facts),
        "sizes": dict(told.sizes),
        "latency_ms": [
            {"device": d, "precision": p, "threads": n, "p50": ms} for (d, p, n), ms in told.latency.items()
        ],
        "stored": found.stored.to_json(),
        "variants": {
            one.family: {
                "gate": told.gates[one.family],
                "misses": list(one.misses),
                "methods": dict(one.plan.methods),
                "quantised": {stage: sorted(names) for stage, names in one.plan.chosen.items()},
                "quality": one.quality.to_json(),
                "everything": one.everything.to_json(),
            }
            for one in found.results
        },
        "groups": {name: [round(x, 2) for x in psnr] for name, psnr in found.groups.items()},
        "layers": [
            {
                **{"stage": one.layer.stage, "name": one.layer.name, "operations": one.operations},
                **{"psnr": [round(x, 2) for x in one.psnr], "damage": round(one.damage, 5)},
            }
            for one in _sorted(found)
        ],
    }


def _sorted(found: Calibration) -> list[Sensitivity]:
    return [found.sensitivities[name] for name in worst_first(found.sensitivities)]


def _sensitivity_plot(found: Calibration) -> bytes:
    """A bar per layer: how far its portraits are from the float32 ones. Pale: in float32 in the first plan."""
    rows = _sorted(found)
    figure, axes = _figure(11, 3.6)
    chosen = found.results[0].plan.chosen
    for index, one in enumerate(rows):
        quantised = one.layer.name in chosen[one.layer.stage]
        axes.bar(index, float(np.mean(one.psnr)), color=COLOURS[one.layer.stage], alpha=1.0 if quantised else 0.35)
    for stage, colour in COLOURS.items():
        axes.bar(0, 0, color=colour, label=stage)
    axes.bar(0, 0, color="#888888", alpha=0.35, label="stays in float32")
    axes.set(
        xlabel="layers, by falling damage per multiply-add", ylabel="PSNR if it alone is int8, dB", xlim=(-1, len(rows))
    )
    axes.legend(fontsize=8, ncols=4, loc="upper left")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)
    return _png(figure)


def _steps_plot(found: Calibration) -> bytes:
    """The latent's error after each step, relative to the way from the noise."""
    figure, axes = _figure(5.5, 3.2)
    for result in found.results:
        for name, quality, style in ((result.family, result.quality, "-"), ("everything", result.everything, ":")):
            steps = np.arange(1, len(quality.step_errors) + 1)
            axes.plot(
                steps,
                quality.step_errors,
                style,
                marker="o",
                label=f"{result.family}, {name}" if style == ":" else name,
            )
    axes.set(
        xlabel="step",
        ylabel="error / way from the noise",
        yscale="log" if any(one.quality.step_errors.any() for one in found.results) else "linear",
    )
    axes.set_xticks(steps)
    axes.legend(fontsize=7)
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), constrained_layout=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis="y")
    return figure, axes


def _png(figure: Any) -> bytes:
    import matplotlib.pyplot as plt

    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return data.getvalue()


def _sheet(found: Calibration, result: Result) -> bytes:
    """Rows of float32, int8 and difference, from the worst pair to the median; JPEG with the mark of every portrait."""
    order = np.argsort(result.quality.psnr, kind="stable")
    picked = order[np.linspace(0, (len(order) - 1) // 2, ROWS).round().astype(int)]
    columns: list[NDArray[np.uint8]] = []
    for index in picked:
        a, b = found.reference.images[index], result.drawn.images[index]
        apart = np.clip(128.0 + AMPLIFIED * (b.astype(np.float64) - a), 0, 255).astype(np.uint8)
        columns.append(np.concatenate([a, b, apart], axis=0))
    facts = {"Variant": result.family, "Rows": "float32, int8, difference times 8"}
    return encode_marked(np.concatenate(columns, axis=1), "jpeg", facts=facts, quality=82)
