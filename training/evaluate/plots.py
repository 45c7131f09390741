"""The two pictures of a report, as PNG bytes: quality over steps, and the sweep of the prior weight."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from training.evaluate.protocol import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (
    ("sex", "sex as the voice's, %"),
    ("age_mae", "age, mean absolute error, years"),
    ("cosine", "cosine to the real person"),
    ("r10", "R@10, %"),
    ("kid", "KID x1000, judge's features"),
    ("same_voice", "cosine, same voice, other seed"),
)
REFERENCES = {"real portraits": "--", "another's portrait": ":"}


def steps_plot(result: Result) -> bytes:
    """Six measures over the number of steps, one line per arm; real and strangers' portraits as level lines."""
    rows = [row for row in result.rows if row.voices == "synthetic"]
    figure = _figure(11.0, 6.0)
    for axes, (key, title) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        known = [row for row in rows if row.values[key] is not None]
        for arm in _arms(known):
            points = [(row.steps, row.values[key]) for row in known if row.arm == arm and row.steps is not None]
            if points:
                axes.plot(*zip(*sorted(points), strict=True), marker="o", label=arm)
        for row in known:
            if row.steps is None and row.arm in REFERENCES:
                axes.axhline(row.values[key], color="grey", linestyle=REFERENCES[row.arm], label=row.arm)
        _over_steps(axes, sorted({row.steps for row in rows if row.steps is not None}))
        axes.set_title(title, fontsize=10)
    figure.axes[0].legend(fontsize=8)
    return _png(figure)


def prior_plot(result: Result) -> bytes:
    """Mean of the cosine over the prior weight with one standard deviation each way, one line per arm."""
    figure = _figure(6.0, 4.0)
    axes = figure.subplots()
    weights = sorted({row.prior_weight for row in result.prior if row.prior_weight is not None})
    for arm in _arms(result.prior):
        rows = [row for row in result.prior if row.arm == arm]
        places = [weights.index(row.prior_weight) for row in rows if row.prior_weight is not None]
        cosines = [row.values["cosine"] or 0.0 for row in rows]
        deviations = [(row.values["cosine_variance"] or 0.0) ** 0.5 for row in rows]
        axes.errorbar(places, cosines, deviations, marker="o", capsize=3, label=arm)
    axes.set_xticks(range(len(weights)), [f"{weight:g}" for weight in weights])
    axes.set_xlabel("weight of the face prior")
    axes.set_ylabel("cosine to the real person, mean ± deviation")
    axes.legend(fontsize=8)
    return _png(figure)


def _arms(rows: tuple[Row, ...] | list[Row]) -> list[str]:
    """Names in the order of the rows."""
    return list(dict.fromkeys(row.arm for row in rows))


def _over_steps(axes: Axes, ticks: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("steps")
    axes.grid(alpha=0.3)


def _figure(width: float, height: float) -> Figure:
    """A figure without pyplot: no window, no state shared with the caller's own plots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()
