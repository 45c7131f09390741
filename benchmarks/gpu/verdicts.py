"""The goals for a GPU, and whether what lies in the parts' JSON meets them. What was not measured is said to be so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.arms import name_of
from benchmarks.gpu.baselines import WAYS, speedups
from benchmarks.gpu.engines import BUILT, RATIO_LIMIT
from benchmarks.gpu.floor import group
from benchmarks.gpu.parity import COSINE, PSNR_DB
from benchmarks.gpu.parts import JSON
from benchmarks.gpu.plan import Arm

MOST_MS, TAIL, TIMES = 2.0, 1.3, 2.0
PORTRAITS = 10_000
LEVELS = 2
COMPILED = "torch compile max-autotune fp16"

Parts = dict[str, JSON]


def verdicts(parts: Parts, headline: list[Arm], floors: JSON) -> list[JSON]:
    """One line per goal: goal, limit, what was measured, and met, missed or not measured.

    `headline`: the arms the goals speak of; `floors`: what `benchmarks.gpu.floor.floors` gives.
    """
    speed = _speed(parts, headline, floors)
    return [*_engines(parts), *_parity(parts), *_soak(parts), *speed, *_int8(parts), *_onnxruntime(parts)]


def _line(goal: str, limit: str, measured: Any, met: bool | None) -> JSON:
    said = "not measured" if met is None else "met" if met else "missed"
    return {"goal": goal, "limit": limit, "measured": measured, "verdict": said}


def _engines(parts: Parts) -> Iterator[JSON]:
    built = parts.get("engines", {}).get("results", {}).get(BUILT, {})
    good, state = sum("plan_bytes" in value for value in built.values()), parts.get("engines", {}).get("state")
    met = None if not built or (good == len(built) and state != "done") else good == len(built)
    said = f"{good} of {len(built)}{'' if state == 'done' else f', {state}'}" if built else None
    yield _line("all engines build", "every one asked for", said, met)
    ratios = [r for sizes in group(parts, "engines", "sizes").get("pipelines", {}).values() for r in sizes.values()]
    worst = max(ratios, default=None)
    limit = f"< {RATIO_LIMIT:g} × that of fewest steps"
    yield _line("size of unrolled pipelines", limit, worst, None if len(ratios) < 2 else max(ratios) < RATIO_LIMIT)


def _parity(parts: Parts) -> Iterator[JSON]:
    for precision, limit in COSINE.items():
        graphs = parts.get("parity", {}).get("results", {}).get("graphs", {})
        mine = [value for name, value in graphs.items() if name.endswith(f"{precision})")]
        seen = [one["cosine"] for value in mine for one in value.get("outputs", {}).values()]
        measured, met = _lowest(seen, failed=any("error" in value for value in mine), limit=limit)
        yield _line(f"outputs of single engines, {precision}", f"cosine ≥ {limit:g}", measured, met)
    drawn = parts.get("parity", {}).get("results", {}).get("portraits", {})
    for precision, least in PSNR_DB.items():
        mine = [value for name, value in drawn.items() if f" {precision} " in name]
        if precision not in COSINE and not mine:
            continue
        seen = [value["psnr_db"]["min"] for value in mine if "psnr_db" in value]
        measured, met = _lowest(seen, failed=any("error" in value for value in mine), limit=least)
        yield _line(f"portraits, {precision}", f"PSNR ≥ {least:g} dB, the lowest of all", measured, met)
    repeats = [value.get("repeats", False) for value in drawn.values()]
    yield _line("the same seed gives the same bytes", "always", _share(repeats), _all(repeats))
    arms = parts.get("latency", {}).get("results", {}).get("portraits", {})
    captured = [value["capture"] == "graph" for value in arms.values() if "capture" in value]
    yield _line("one CUDA graph per portrait", "every arm", _share(captured), _all(captured))


def _lowest(seen: list[float | None], *, failed: bool, limit: float) -> tuple[float | None, bool | None]:
    """The least, None where one is no number; and whether all are at least `limit` and none failed."""
    numbers = [value for value in seen if value is not None]
    least = min(numbers, default=None)
    if not seen and not failed:
        return None, None
    return None if least is None else round(least, 6), least is not None and least >= limit and len(numbers) == len(
        seen
    ) and not failed


def _soak(parts: Parts) -> Iterator[JSON]:
    runs = list(group(parts, "soak", "soak").values())
    limit = f"{PORTRAITS} portraits"
    if not runs:
        yield _line("memory of device and host does not grow", limit, None, None)
        return
    run = runs[-1]
    grown = ", ".join(f"{name} {run[name]['grown_bytes'] / 2**20:+.1f} MiB" for name in ("device", "host"))
    enough = None if run["portraits"] < PORTRAITS and not run["grows"] else not run["grows"]
    yield _line("memory of device and host does not grow", limit, f"{run['portraits']} portraits: {grown}", enough)


def _speed(parts: Parts, headline: list[Arm], floors: JSON) -> Iterator[JSON]:
    arms, ways = group(parts, "latency", "portraits"), group(parts, "baselines", WAYS)
    timed = {arm: arms[str(arm)]["ms"]["end_to_end"] for arm in headline if "ms" in arms.get(str(arm), {})}
    goal = "PCM to pixels, batch 1, default steps"
    arm = None
    if timed:
        arm = min(timed, key=lambda one: timed[one]["p50"])
        p50, p99 = timed[arm]["p50"], timed[arm]["p99"]
        yield _line(f"{goal}, {arm.precision}", f"p50 ≤ {MOST_MS:g} ms", f"{p50:.3f} ms ({arm.form})", p50 <= MOST_MS)
        tail = p99 / p50
        yield _line("its tail", f"p99 ≤ {TAIL:g} × p50", f"{tail:.2f} × ({p99:.3f} ms)", tail <= TAIL)
    else:
        yield _line(goal, f"p50 ≤ {MOST_MS:g} ms", None, None)
        yield _line("its tail", f"p99 ≤ {TAIL:g} × p50", None, None)
    limits = floors.get(str(arm), {})
    share = limits.get("share_of_launches")
    said = None if share is None else f"{limits['kernels']} kernels, {100 * share:.0f} %"
    yield _line("kernels per portrait, share of the launch floor", "reported", said, None if said is None else True)
    ratios = [speedups(ways, name_of(arm)).get(COMPILED) for arm in headline]
    best = max((ratio["times"] for ratio in ratios if ratio), default=None)
    yield _line(
        "faster than torch.compile max-autotune with its CUDA graphs, same run",
        f"≥ {TIMES:g} ×",
        best,
        None if best is None else best >= TIMES,
    )


def _int8(parts: Parts) -> Iterator[JSON]:
    """The quickest form of each precision beside the other's, where int8 was measured."""
    ways = group(parts, "baselines", WAYS)
    best = {
        precision: min(times, key=lambda name: float(ways[name]["ms"]["p50"]))
        for precision in ("int8", "fp16")
        if (
            times := [
                n for n, way in ways.items() if n.startswith("tensorrt") and n.endswith(precision) and "ms" in way
            ]
        )
    }
    if "int8" in best:
        found = speedups(ways, best["int8"]).get(best.get("fp16", ""))
        said = None if found is None else f"{found['times']:g} × ({found['least']:g} to {found['most']:g})"
        yield _line("TensorRT int8 beside fp16, same run", "reported", said, None if said is None else True)


def _onnxruntime(parts: Parts) -> Iterator[JSON]:
    ways = group(parts, "baselines", WAYS)
    names = [name for name, value in ways.items() if name.startswith("onnxruntime") and "ms" in value]
    yield _line("ONNX Runtime CUDA in the same table", "measured", ", ".join(names) or None, True if names else None)
    checks = group(parts, "cuda", "portraits")
    levels = [value["max_levels"] for value in checks.values()]
    met = all(level <= LEVELS for level in levels) if levels else None
    limit = f"≤ {LEVELS} grey levels"
    yield _line("ONNX Runtime CUDA against its CPU provider", limit, max(levels, default=None), met)
    repeats = [value["cuda_repeats"] for value in checks.values()]
    yield _line("ONNX Runtime CUDA repeats its bytes", "always", _share(repeats), _all(repeats))


def _all(values: list[bool]) -> bool | None:
    return all(values) if values else None


def _share(values: list[bool]) -> str | None:
    return f"{sum(values)} of {len(values)}" if values else None
