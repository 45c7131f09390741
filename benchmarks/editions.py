"""Two bundles side by side in one run: stages and end to end, rounds interleaved, one thread and two.

python benchmarks/editions.py BEFORE:STEPS AFTER:STEPS -o OUT.json

A shared machine has fast and slow minutes; interleaved rounds meet both alike, so the ratios hold where single numbers
do not. An earlier bundle comes out of the history: git archive COMMIT runtime/bundles/demo | tar -x -C FOLDER.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from runtime.bench import measure, statistics
from runtime.errors import S2FError
from runtime.output import check_writable, write_file

ROUNDS, RUNS, WARMUP = 5, 40, 20
STAGES = ("encoder", "step", "decoder", "end_to_end")


def compare(arms: dict[str, tuple[Path, int]], threads: int) -> dict[str, Any]:
    """Raw milliseconds per arm and stage over all rounds, with what each arm is and the machine of the first round."""
    raw: dict[str, dict[str, list[float]]] = {name: {stage: [] for stage in STAGES} for name in arms}
    about: dict[str, Any] = {}
    for _ in range(ROUNDS):
        for name, (bundle, steps) in arms.items():
            report = measure(bundle, device="cpu", threads=threads, steps=steps, runs=RUNS, warmup=WARMUP, cold=False)
            about.setdefault(name, {"bundle": report["bundle"], "steps": steps})
            about.setdefault("machine", report["machine"])
            about.setdefault("versions", report["versions"])
            for stage in STAGES:
                raw[name][stage] += report["raw_ms"][stage]
    summary = {name: {stage: statistics(values) for stage, values in stages.items()} for name, stages in raw.items()}
    return {"threads": threads, **about, "stages_ms": summary, "raw_ms": raw}


def table(result: dict[str, Any]) -> str:
    """Markdown: median and minimum per stage for both arms, and how many times faster the second is."""
    (before, first), (after, second) = result["stages_ms"].items()
    count = "one thread" if result["threads"] == 1 else f"{result['threads']} threads"
    rows = [f"| ms, p50 (min), {count} | {before} | {after} | times faster |", "|---|---|---|---|"]
    for stage in STAGES:
        a, b = first[stage], second[stage]
        cells = [f"{x['p50']:.1f} ({x['min']:.1f})" for x in (a, b)]
        rows.append(f"| {stage.replace('_', ' ')} | {' | '.join(cells)} | {a['p50'] / b['p50']:.1f} |")
    return "\n".join(rows)


def edition(text: str) -> tuple[Path, int]:
    """BUNDLE:STEPS of the command line; ValueError is argparse's to report."""
    bundle, _, steps = text.rpartition(":")
    return Path(bundle), int(steps)


def main() -> int:
    """Measures, prints the tables and writes the raw values."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arms", nargs=2, type=edition, metavar="BUNDLE:STEPS")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    arms = {f"{label}, {arm[1]} steps": arm for label, arm in zip(("before", "after"), options.arms, strict=True)}
    try:
        check_writable(options.out)
        results = [compare(arms, threads) for threads in (2, 1)]
        write_file(options.out, (json.dumps(results, indent=1) + "\n").encode())
    except S2FError as error:
        sys.stderr.write(f"editions: error [{error.code}]: {error}\n")
        return error.code
    sys.stdout.write("\n\n".join(table(result) for result in results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
