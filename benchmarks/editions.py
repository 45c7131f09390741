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

from runtime.bench import Block, flat, measure, ratio, statistics, values
from runtime.errors import S2FError
from runtime.output import check_writable, write_file

ROUNDS, RUNS, WARMUP = 5, 40, 20
STAGES = ("encoder", "step", "decoder", "end_to_end")


def compare(arms: dict[str, tuple[Path, int]], threads: int) -> dict[str, Any]:
    """Raw milliseconds per arm and stage, a list per round, how many times faster the second arm is, what each arm is
    and the machine.
    """
    raw: dict[str, dict[str, list[list[float]]]] = {name: {stage: [] for stage in STAGES} for name in arms}
    about: dict[str, Any] = {}
    for _ in range(ROUNDS):
        for name, (bundle, steps) in arms.items():
            report = measure(bundle, device="cpu", threads=threads, steps=steps, runs=RUNS, warmup=WARMUP, cold=False)
            about.setdefault(name, {"bundle": report["bundle"], "steps": steps})
            about.setdefault("machine", report["machine"])
            about.setdefault("versions", report["versions"])
            found = values(Block.from_json(one) for one in report["blocks"])
            for stage in STAGES:
                raw[name][stage].append(flat(found[stage]))
    before, after = raw.values()
    return {
        "threads": threads,
        **about,
        "stages_ms": {
            name: {stage: statistics(flat(rounds)) for stage, rounds in stages.items()} for name, stages in raw.items()
        },
        "times_faster": {stage: vars(ratio(before[stage], after[stage], paired=True)) for stage in STAGES},
        "raw_ms": raw,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: median and minimum per stage for both arms, and how many times faster the second is, with interval."""
    (before, first), (after, second) = result["stages_ms"].items()
    count = "one thread" if result["threads"] == 1 else f"{result['threads']} threads"
    rows = [f"| ms, p50 (min), {count} | {before} | {after} | times faster |", "|---|---|---|---|"]
    for stage in STAGES:
        cells = [f"{x['p50']:.1f} ({x['min']:.1f})" for x in (first[stage], second[stage])]
        times = "{value:.1f} ({low:.1f} to {high:.1f})".format(**result["times_faster"][stage])
        rows.append(f"| {stage.replace('_', ' ')} | {' | '.join(cells)} | {times} |")
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
