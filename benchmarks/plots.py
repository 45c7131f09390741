"""Pictures of reports of `s2f bench`: how the calls are distributed, and what each stage takes.

python -m benchmarks.plots REPORT.json… -o OUT.png      (needs matplotlib)
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from runtime.bench import Block, flat, read_report, values
from runtime.errors import S2FError

STAGES = ("audio", "encoder", "step", "decoder", "encode_png")
INK, PALE = "#1f4e79", "#9db7d1"


def draw(reports: dict[str, dict[str, Any]], out: Path) -> None:
    """Left the distribution of whole calls per report, all and undisturbed ones; right the stages of the first."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), constrained_layout=True)
    for name, report in reports.items():
        _distribution(left, name, [Block.from_json(one) for one in report["blocks"]])
    left.set(xlabel="PCM to pixels, ms", ylabel="share of calls", ylim=(0, 1.01))
    left.legend(fontsize=8, loc="lower right")
    _bars(right, next(iter(reports.values())))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(out, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _distribution(axes: Any, name: str, blocks: list[Block]) -> None:
    every, quiet = (flat(values(blocks, quiet=chosen).get("end_to_end", [])) for chosen in (False, True))
    lines = [(every, "-", "all")] if len(every) == len(quiet) else [(every, ":", "all"), (quiet, "-", "undisturbed")]
    for calls, style, which in lines:
        if calls:
            shares = np.arange(1, len(calls) + 1) / len(calls)
            axes.step(sorted(calls), shares, style, where="post", label=f"{name}, {which} {len(calls)} calls")
            axes.set_xlim(left=0, right=max(axes.get_xlim()[1], 1.3 * float(np.percentile(calls, 99))))


def _bars(axes: Any, report: dict[str, Any]) -> None:
    found = report["quiet_ms"] or report["stages_ms"]
    stages = [name for name in STAGES if name in found][::-1]
    p50, p99 = ([found[name][point] for name in stages] for point in ("p50", "p99"))
    names = ["one step" if name == "step" else name.replace("_", " ") for name in stages]
    axes.barh(names, p99, color=PALE, height=0.6, label="p99")
    axes.barh(names, p50, color=INK, height=0.6, label="p50")
    axes.set_xlabel("ms")
    axes.legend(fontsize=8)


def main() -> int:
    """Reads the reports and writes the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        draw({path.stem: read_report(path) for path in options.reports}, options.out)
    except S2FError as error:
        sys.stderr.write(f"plots: error [{error.code}]: {error}\n")
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
