"""Piece "table": floors, shares and verdicts out of the other pieces' JSON, and all of it as Markdown. Needs no GPU."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.gpu.arms import name_of
from benchmarks.gpu.baselines import WAYS, speedups
from benchmarks.gpu.engines import BUILT
from benchmarks.gpu.floor import floors, group
from benchmarks.gpu.parts import JSON, Part, read_parts
from benchmarks.gpu.plan import Job
from benchmarks.gpu.verdicts import verdicts
from export.cost import count
from export.derive import derive

Parts = dict[str, JSON]
MISSING = "–"


def measure(job: Job, part: Part) -> None:
    """Reads, counts, judges, prints."""
    parts = read_parts(job.out)
    places = {str(data.get("place")) for data in parts.values() if data.get("place")}
    part.put("summary", "one_place", len(places) <= 1)

    @functools.cache
    def counted(graph: str, batch: int, steps: int, precision: str) -> JSON:
        cost = count(derive(job.source(precision), graph, batch=batch, steps=steps, precision=precision))
        return dataclasses.asdict(cost)

    limits = floors(parts, counted)
    part.put("summary", "floors", limits)
    part.put("summary", "verdicts", verdicts(parts, job.wanted.headline(), limits))
    ours = min((name_of(arm) for arm in job.wanted.headline()), key=lambda name: _median(parts, name))
    part.put("summary", "times_faster", {ours: speedups(group(parts, "baselines", WAYS), ours)})
    sys.stdout.write(to_markdown({**parts, "table": part.data}) + "\n")


def _median(parts: Parts, name: str) -> float:
    way = group(parts, "baselines", WAYS).get(name, {})
    return float(way["ms"]["p50"]) if "ms" in way else float("inf")


def to_markdown(parts: Parts) -> str:
    """All tables for which there is something."""
    sections = (_about, _engines, _graphs, _portraits, _stages, _latency, _card, _ways, _soak, _verdicts)
    return "\n\n".join(text for section in sections if (text := "\n".join(section(parts))))


def _about(parts: Parts) -> Iterator[str]:
    place = next((data["place"] for data in parts.values() if data.get("place")), None)
    bundle: JSON = next((data["bundle"] for data in parts.values() if data.get("bundle")), {})
    if place:
        where = f"{place['gpu']}, compute capability {place['capability']}, driver {place['driver']}"
        yield f"{where}; bundle {bundle.get('name')} {str(bundle.get('sha256'))[:12]}"
    for name, data in parts.items():
        if data["state"] != "done" and name != "table":
            at = f" at {data['doing']}" if data["doing"] else ""
            yield f"- {name}: {data['state']}{at}. {data['error'] or ''}"


def _engines(parts: Parts) -> Iterator[str]:
    built = group(parts, "engines", BUILT)
    rows = [
        (
            name,
            _number(value.get("seconds"), 1),
            _number(value.get("plan_bytes"), 1, 1e6),
            _number(value.get("graph_bytes"), 1, 1e6),
            _number(value.get("peak_device_bytes"), 0, 1e6),
        )
        for name, value in built.items()
    ]
    yield from _table(("engine", "build s", "plan MB", "graph MB", "peak device MB"), rows)
    for name, sizes in group(parts, "engines", "sizes").get("pipelines", {}).items():
        yield f"\nSize of pipelines by steps ({name}): {', '.join(f'{n}: {ratio}' for n, ratio in sizes.items())}"


def _graphs(parts: Parts) -> Iterator[str]:
    rows = [
        (
            name,
            output,
            str(value["inputs"]),
            _number(one["cosine"], 6),
            _digits(one["relative"]),
            _number(one.get("psnr_db"), 1),
        )
        for name, value in group(parts, "parity", "graphs").items()
        for output, one in value["outputs"].items()
    ]
    yield from _table(("engine", "output", "inputs", "lowest cosine", "largest relative error", "PSNR dB"), rows)


def _portraits(parts: Parts) -> Iterator[str]:
    rows = [
        (
            name,
            str(value["pairs"]),
            _number(value["psnr_db"]["min"], 1),
            _number(value["psnr_db"]["median"], 1),
            str(value["max_levels"]),
            "yes" if value["repeats"] else "no",
        )
        for name, value in group(parts, "parity", "portraits").items()
    ]
    yield from _table(("portraits", "pairs", "PSNR dB min", "median", "grey levels", "same seed, same bytes"), rows)


def _stages(parts: Parts) -> Iterator[str]:
    rows = [
        (
            name,
            str(value["nodes"].get("kernel", 0)),
            *(_number(value["ms"][kind]["p50"], 4) for kind in ("graph_device", "graph_busy")),
        )
        for name, value in group(parts, "latency", "stages").items()
    ]
    yield from _table(("stage, ms p50", "kernels", "one launch", "in a row"), rows)


def _latency(parts: Parts) -> Iterator[str]:
    limits = group(parts, "table", "summary").get("floors", {})
    rows = []
    for name, value in group(parts, "latency", "portraits").items():
        if "ms" not in value:
            continue
        ms, floor = value["ms"], limits.get(name, {})
        whole = (_number(ms["end_to_end"][point], 3) for point in ("p50", "p90", "p99"))
        kinds = ("graph_wall", "enqueue_wall", "graph_device", "enqueue_device", "graph_busy")
        rows.append(
            (
                name,
                *whole,
                *(_number(ms.get(kind, {}).get("p50"), 3) for kind in kinds),
                str(value.get("nodes", {}).get("kernel", MISSING)),
                _number(floor.get("floor_ms", {}).get("floor"), 3),
                _percent(floor.get("share_end_to_end")),
                _percent(floor.get("share_of_launches")),
            )
        )
    heads = (
        *("arm, ms", "p50", "p90", "p99", "graph, wall", "enqueue, wall", "graph, device", "enqueue, device"),
        *("graph, in a row", "kernels", "floor", "floor / p50", "launches / graph, device"),
    )
    yield from _table(heads, rows)


def _card(parts: Parts) -> Iterator[str]:
    found = group(parts, "latency", "card")
    for name in ("launch", "memset"):
        for side in ("device_us", "wall_us"):
            if name in found:
                line = found[name][side]
                yield f"- {name}, {side[:-3]}: {line['intercept']} µs per graph and {line['slope']} µs per node"
    for name in ("h2d", "d2h", "d2d"):
        if "copies" in found:
            yield f"- {name}: {found['copies'][name]['gb_s']} GB/s"
    matrix = group(parts, "baselines", "card").get("matrix")
    if matrix:
        rates = f"{matrix['fp16_tflops']} TFLOP/s fp16, {matrix['fp32_tflops']} fp32"
        yield f"- matrix products of {matrix['size']}: {rates}"


def _ways(parts: Parts) -> Iterator[str]:
    times = group(parts, "table", "summary").get("times_faster", {})
    ours, ratios = next(iter(times.items())) if times else ("", {})
    rows = [
        (
            name,
            *(_number(value["ms"][point], 3) for point in ("p50", "p90", "p99")),
            str(value["ms"]["count"]),
            _number(value.get("seconds"), 0),
            f"{ratios[name]['times']:.2f} ({ratios[name]['least']:.2f} to {ratios[name]['most']:.2f})"
            if name in ratios
            else MISSING,
        )
        for name, value in group(parts, "baselines", WAYS).items()
        if "ms" in value
    ]
    yield from _table(("PCM to pixels, ms", "p50", "p90", "p99", "n", "prepared in s", f"{ours} is faster ×"), rows)
    for name, value in parts.get("baselines", {}).get("results", {}).get(WAYS, {}).items():
        if "error" in value:
            yield f"- {name}: {value['error']}"


def _soak(parts: Parts) -> Iterator[str]:
    for name, value in group(parts, "soak", "soak").items():
        sides = (f"{side} {value[side]['grown_bytes'] / 2**20:+.2f} MiB" for side in ("device", "host"))
        tenths = ", ".join(str(one) for one in value["p99_ms"])
        yield f"{name}: {value['portraits']} portraits; {', '.join(sides)}; p99 ms by tenths: {tenths}"


def _verdicts(parts: Parts) -> Iterator[str]:
    found = group(parts, "table", "summary").get("verdicts", [])
    rows = [
        (one["goal"], one["limit"], MISSING if one["measured"] is None else str(one["measured"]), one["verdict"])
        for one in found
    ]
    yield from _table(("goal", "limit", "measured", "verdict"), rows)


def _table(heads: Iterable[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        heads = list(heads)
        yield from (f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def _number(value: float | None, digits: int, unit: float = 1.0) -> str:
    return MISSING if value is None else f"{value / unit:.{digits}f}"


def _digits(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2g}"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.0f} %"
