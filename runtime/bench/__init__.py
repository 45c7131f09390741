"""How fast a bundle is here: what `s2f bench` runs, and the one measuring core that benchmarks/ uses too.

`block` times calls and knows what the machine did meanwhile, `statistics` sums them up, `ratio` compares two with an
interval, `environment` says what they depend on; `measure` makes the whole report of a bundle.
"""

from .comparison import Comparison, baseline, compare, comparison_text, doubt, gate, read_report
from .core import Block, Ratio, Timed, Work, block, flat, ratio, statistics, stopwatch, values
from .disturbance import Snapshot, between, snapshot, together, wait_for_quiet
from .report import RUNS, SCHEMA_VERSION, WARMUP, collect, figures, measure
from .speech import synthetic_speech, wav_bytes
from .system import environment, machine_id, state, versions
from .text import table, to_json, to_markdown, to_text

__all__ = [
    "RUNS",
    "SCHEMA_VERSION",
    "WARMUP",
    "Block",
    "Comparison",
    "Ratio",
    "Snapshot",
    "Timed",
    "Work",
    "baseline",
    "between",
    "block",
    "collect",
    "compare",
    "comparison_text",
    "doubt",
    "environment",
    "figures",
    "flat",
    "gate",
    "machine_id",
    "measure",
    "ratio",
    "read_report",
    "snapshot",
    "state",
    "statistics",
    "stopwatch",
    "synthetic_speech",
    "table",
    "to_json",
    "to_markdown",
    "to_text",
    "together",
    "values",
    "versions",
    "wait_for_quiet",
    "wav_bytes",
]
