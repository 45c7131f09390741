"""From what a tensor held to the range that eight bits span: three methods, each a pure function of `Observed`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from calibration.activations import BINS, Observed

Range: TypeAlias = "tuple[float, float]"

PERCENTILE = 99.99
LEVELS = 128  # of one sign
COARSER = 4  # bins of a histogram that are one for the search by entropy, which takes time with their square


def min_max(seen: Observed) -> Range:
    """All that was seen: nothing is cut, and one odd value coarsens the rest."""
    return seen.extremes


def percentile(seen: Observed) -> Range:
    """What is left when (100 − PERCENTILE) per cent of the values are cut, half at each end."""
    low, high = seen.extremes
    share = np.cumsum(seen.counts) / seen.counts.sum()
    cut = (100.0 - PERCENTILE) / 200.0
    first, last = int(np.searchsorted(share, cut)), int(np.searchsorted(share, 1.0 - cut))
    return max(low, float(seen.edges[first])), min(high, float(seen.edges[min(last + 1, BINS)]))


def entropy(seen: Observed) -> Range:
    """The symmetric cut whose quantised distribution diverges least from the observed one (Migacz, GTC 2017, "8-bit
    inference with TensorRT"), as ONNX Runtime computes it; never beyond what was seen.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    low, high = seen.extremes
    coarse = BINS // COARSER
    collector = HistogramCollector("entropy", False, coarse, LEVELS, PERCENTILE, "same")
    counts, edges = seen.counts.reshape(coarse, COARSER).sum(axis=1), seen.edges[::COARSER].astype(np.float32)
    left, right = collector.get_entropy_threshold((counts, edges, np.float32(low), np.float32(high), edges[-1]), LEVELS)
    return max(low, float(left)), min(high, float(right))


METHODS: Mapping[str, Callable[[Observed], Range]] = {"minmax": min_max, "percentile": percentile, "entropy": entropy}
