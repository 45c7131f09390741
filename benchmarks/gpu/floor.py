"""What a portrait cannot be faster than on this card: arithmetic on the parts' JSON.

    floor = max(operations / rate, bytes / bandwidth, kernels × time of an empty one) + copy in + copy out

Operations and bytes are counted in the derived graphs (`export.cost`: weights once, activations with pointwise nodes
fused); rate, bandwidth, launches and copies are those measured on the card in the same run, kernels those of the
captured graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from benchmarks.gpu.parts import JSON
from benchmarks.gpu.plan import Arm
from runtime.errors import S2FError

RATES = {"float16": "fp16_tflops", "float32": "fp32_tflops"}

Counted = Callable[[str, int, int, str], JSON]
"""(graph, batch, steps, precision) → the cost of the derived graph, as a dict."""


@dataclasses.dataclass(frozen=True)
class Card:
    """What was measured of the card; None where it was not. µs, TFLOP/s by type, GB/s."""

    kernel_us: float | None
    graph_us: float | None
    bandwidth: float | None
    rates: dict[str, float]

    @classmethod
    def of(cls, parts: dict[str, JSON]) -> Card:
        """From the parts "latency" and "baselines"."""
        found = group(parts, "latency", "card")
        launch = found.get("launch", {}).get("device_us") or found.get("memset", {}).get("device_us") or {}
        matrix = group(parts, "baselines", "card").get("matrix", {})
        rates = {kind: matrix[name] for kind, name in RATES.items() if matrix.get(name)}
        return cls(
            launch.get("slope"),
            launch.get("intercept"),
            found.get("copies", {}).get("d2d", {}).get("gb_s"),
            rates,
        )


def group(parts: dict[str, JSON], piece: str, name: str) -> JSON:
    """A group of a piece's results, without what failed; empty where there is none."""
    found = parts.get(piece, {}).get("results", {}).get(name, {})
    return {key: value for key, value in found.items() if not (isinstance(value, dict) and "error" in value)}


def cost_of(arm: Arm, counted: Counted) -> JSON:
    """Operations by type and bytes of one launch of an arm: of its pipeline, or of its stages together."""
    if arm.form == "pipeline":
        runs = [(counted("pipeline", arm.batch, arm.steps, arm.precision), 1)]
    else:
        times = {"encoder": 1, "unet": arm.steps, "decoder": 1}
        runs = [(counted(stage, arm.batch, 0, arm.precision), often) for stage, often in times.items()]
    matrix: dict[str, int] = {}
    for cost, often in runs:
        for kind, operations in cost["matrix"].items():
            matrix[kind] = matrix.get(kind, 0) + often * operations
    return {
        "matrix": matrix,
        "weight_bytes": sum(sum(cost["weights"].values()) for cost, _ in runs),
        "activation_bytes": sum(often * cost["fused_activation_bytes"] for cost, often in runs),
    }


def floor_of(cost: JSON | None, kernels: int | None, copies_ms: float, card: Card) -> JSON:
    """Milliseconds: the three terms, None where a figure is unknown, and the floor of those that are known."""
    rates = card.rates
    compute = bandwidth = launch = None
    if cost and all(kind in rates for kind in cost["matrix"]):
        compute = sum(operations / rates[kind] / 1e9 for kind, operations in cost["matrix"].items())
    if cost and card.bandwidth:
        bandwidth = (cost["weight_bytes"] + cost["activation_bytes"]) / card.bandwidth / 1e6
    if kernels and card.kernel_us is not None and card.graph_us is not None:
        launch = (card.graph_us + kernels * card.kernel_us) / 1e3
    known = [term for term in (compute, bandwidth, launch) if term is not None]
    terms = {"compute": compute, "bandwidth": bandwidth, "launch": launch, "copies": copies_ms}
    terms["floor"] = max(known) + copies_ms if known else None
    return {name: None if value is None else round(value, 5) for name, value in terms.items()}


def floors(parts: dict[str, JSON], counted: Counted) -> JSON:
    """For every measured arm: cost, floor, and the share of it that was reached end to end and by launches alone."""
    card, found = Card.of(parts), {}
    for name, value in group(parts, "latency", "portraits").items():
        if "ms" not in value:
            continue
        try:
            cost, uncounted = cost_of(Arm(**value["arm"]), counted), None
        except S2FError as reason:
            cost, uncounted = None, str(reason)
        kernels = value.get("nodes", {}).get("kernel")
        terms = floor_of(cost, kernels, value["h2d"]["ms"] + value["d2h"]["ms"], card)
        launched = value["ms"].get("graph_device", {}).get("p50")
        found[name] = {
            "cost": cost,
            "uncounted": uncounted,
            "kernels": kernels,
            "floor_ms": terms,
            "share_end_to_end": _share(terms["floor"], value["ms"]["end_to_end"]["p50"]),
            "share_of_launches": _share(terms["launch"], launched),
        }
    return found


def _share(floor: float | None, measured: float | None) -> float | None:
    return round(floor / measured, 4) if floor is not None and measured else None
