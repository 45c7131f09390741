"""What libs2f costs and whether it lasts: a call from C beside the same call from Python, cancellation, a soak.

python benchmarks/capi.py PREFIX -o OUT.json [--bundle DIR] [--steps N] [--threads N] [--soak N]

PREFIX is the folder that `s2f-capi build -o PREFIX` wrote; a C compiler and pkg-config are needed. The C side is
`capi_driver/`, a process of its own. The two sides of the comparison take turns in one run, since a shared machine has
fast and slow minutes. --soak 0 leaves the soak out. The bundle of the tests, which draws in a millisecond, comes from
PYTHONPATH=tests python -c "import pathlib, tiny_bundle; tiny_bundle.write_tiny_bundle(pathlib.Path('tiny'))".
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from runtime.bench import statistics, synthetic_speech
from runtime.doctor import package_versions
from runtime.errors import BackendFailed, BackendMissing, S2FError
from runtime.machine import cpu_model, load_average, usable_cores
from runtime.output import check_writable, write_file
from runtime.pipeline import shipped_bundle

SOURCES = sorted(Path(__file__).with_name("capi_driver").glob("*.c"))
RATE = 16000
ROUNDS, CALLS, WARMUP = 250, 2, 20
STARTS, CANCELLED = 10, 400
PACED, LONG = 1500, 360_000  # pieces of 20 ms: half a minute, two hours
SETTLED = 0.1
_YES_NO = {True: "holds", False: "does not hold"}
JSON = dict[str, Any]


class Driver:
    """The compiled C side with the arguments that every mode shares."""

    def __init__(self, folder: Path, prefix: Path, options: argparse.Namespace) -> None:
        """Compile into `folder`. Raises BackendMissing without compiler or pkg-config, or where one of them fails."""
        self._program, speech = folder / "capi_driver", folder / "speech.f32"
        self.pcm = synthetic_speech(RATE)
        self.pcm.tofile(speech)
        self._arguments = [str(options.bundle), str(speech), str(options.steps or 0), str(options.threads or 0)]
        library = prefix.absolute() / "lib"
        paths = {"PKG_CONFIG_PATH": str(library / "pkgconfig")}
        flags = _run(["pkg-config", "--cflags", "--libs", "s2f"], {**os.environ, **paths}).split()
        output = ["-o", str(self._program), f"-Wl,-rpath,{library}"]
        _run([os.environ.get("CC", "cc"), "-std=c99", "-O2", "-pthread", *map(str, SOURCES), *output, *flags])

    def command(self, mode: str, count: int) -> list[str]:
        """The command line of a mode."""
        return [str(self._program), mode, *self._arguments, str(count)]

    def lines(self, mode: str, count: int) -> list[list[str]]:
        """The words of each line a mode prints. Raises BackendFailed where it fails."""
        found = subprocess.run(self.command(mode, count), capture_output=True, text=True, check=False)
        if found.returncode != 0:
            raise BackendFailed(f"capi_driver {mode} ended with {found.returncode}: {found.stderr.strip()}")
        return [line.split() for line in found.stdout.splitlines()]


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    except FileNotFoundError:
        raise BackendMissing(f"{command[0]} is not here. Install a C compiler and pkg-config.") from None
    except subprocess.CalledProcessError as error:
        raise BackendMissing(f"{command[0]} failed: {error.stderr.strip()}") from None


@contextmanager
def rounds_of(driver: Driver) -> Iterator[Any]:
    """A function (calls) → [(wall ms, the library's own total ms)] that draws in one C process, which stays."""
    with subprocess.Popen(
        driver.command("rounds", 0), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as side:
        if side.stdin is None or side.stdout is None or side.stdout.readline() != "ready\n":
            raise BackendFailed("capi_driver did not open the bundle; see above.")

        def draw(calls: int) -> list[tuple[float, float]]:
            side.stdin.write(f"{calls}\n")
            side.stdin.flush()
            read = [tuple(map(float, side.stdout.readline().split())) for _ in range(calls)]
            if len(read[-1]) != 2:
                raise BackendFailed("capi_driver stopped drawing; see above.")
            return read

        yield draw
        side.stdin.close()


def overhead(driver: Driver, options: argparse.Namespace) -> JSON:
    """Milliseconds of the same call from C and from Python, in turns, and what each spends outside `total`."""
    sides: dict[str, list[tuple[float, float]]] = {"c": [], "python": []}
    device = {"device": "cpu", "threads": options.threads}
    with rounds_of(driver) as draw_c, runtime.load(options.bundle, **device) as pipeline:

        def draw_python(calls: int) -> list[tuple[float, float]]:
            taken = []
            for _ in range(calls):
                begin = time.perf_counter_ns()
                portrait = pipeline.generate((driver.pcm, RATE), steps=options.steps)
                taken.append(((time.perf_counter_ns() - begin) / 1e6, portrait.timings.total))
            return taken

        for draw in (draw_c, draw_python):
            draw(WARMUP)
        for _ in range(ROUNDS):
            sides["c"] += draw_c(CALLS)
            sides["python"] += draw_python(CALLS)
    walls = {name: [wall for wall, _ in taken] for name, taken in sides.items()}
    outside = {name: [wall - total for wall, total in taken] for name, taken in sides.items()}
    more = float(np.median(np.subtract(walls["c"], walls["python"])))  # of neighbours: both met the same moment
    return {
        "rounds": ROUNDS,
        "calls_a_round": CALLS,
        "wall_ms": {name: statistics(values) for name, values in walls.items()},
        "outside_total_ms": {name: statistics(values) for name, values in outside.items()},
        "c_over_python_ms": round(more, 4),
        "c_over_python_percent": round(100 * more / float(np.median(walls["python"])), 3),
        "raw_ms": {name: [round(value, 4) for value in values] for name, values in walls.items()},
    }


def starts(driver: Driver) -> JSON:
    """Fresh processes: opening (Python included), the first portrait, closing; memory by pipelines that have drawn."""
    found: dict[str, list[float]] = {}
    for _ in range(STARTS):
        for name, *values in driver.lines("start", 0):
            key = f"rss_mib_with_{values[0]}" if name == "rss" else f"{name}_ms"
            found.setdefault(key, []).append(float(values[-1]) / (1024 if name == "rss" else 1))
    return {"processes": STARTS, **{name: statistics(values) for name, values in found.items()}}


def cancellation(driver: Driver) -> JSON:
    """From the wish to cancel, made at evenly spread moments of a call, to the return of the call; and one step."""
    steps, late, codes = [], [], {}
    for words in driver.lines("cancel", CANCELLED):
        if words[0] == "step":
            steps.append(float(words[1]))
            continue
        codes[words[1]] = codes.get(words[1], 0) + 1
        if words[1] == "81":
            late.append(float(words[0]))
    report: JSON = {"calls": CANCELLED, "codes": codes, "step_ms": statistics(steps)}
    if late:  # a bundle may be too fast to be caught
        report["late_ms"] = statistics(late)
        report["p95_less_step_ms"] = round(report["late_ms"]["p95"] - report["step_ms"]["p50"], 4)
    return {**report, "raw_late_ms": [round(value, 4) for value in late]}


def memory(lines: list[list[str]]) -> JSON:
    """MiB of the process over the calls or pieces of its "rss" lines, and its growth after the settling time."""
    samples = np.array([(float(words[1]), float(words[2]) / 1024) for words in lines if words[0] == "rss"])
    settled = samples[samples[:, 0] >= SETTLED * samples[-1, 0]]
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0]) if len(settled) > 1 else 0.0
    return {
        "first": round(samples[0, 1], 2),
        "settled": round(settled[0, 1], 2),
        "last": round(samples[-1, 1], 2),
        "per_1000": round(1000 * slope, 4),
        "samples": {"done": samples[:, 0].tolist(), "mib": samples[:, 1].round(3).tolist()},
    }


def soak(driver: Driver, calls: int) -> JSON:
    """Many calls in one process: its memory, and the times of the tenths in order."""
    begin = time.monotonic()
    lines = driver.lines("soak", calls)
    milliseconds = np.array([float(words[0]) for words in lines if words[0] != "rss"])
    tenths = [part for part in np.array_split(milliseconds, 10) if part.size]
    p99 = [float(np.percentile(part, 99)) for part in tenths]
    return {
        "calls": len(milliseconds),
        "seconds": round(time.monotonic() - begin, 1),
        "rss_mib": memory(lines),
        "p99_last_tenth_over_first": round(p99[-1] / p99[0], 4),
        "tenths_ms": {
            "p50": [round(float(np.percentile(part, 50)), 4) for part in tenths],
            "p99": [round(value, 4) for value in p99],
        },
        "max_ms": round(float(milliseconds.max()), 4),
    }


def streams(driver: Driver) -> JSON:
    """A stream at the speed of speech: what each piece of 20 ms costs; and a long one: its memory."""
    lines = driver.lines("stream", PACED)
    costs = {name: [float(words[1]) for words in lines if words[0] == name] for name in ("push", "poll")}
    return {
        "pieces": PACED,
        **{f"{name}_ms": statistics(values) for name, values in costs.items()},
        "portraits_s": [float(words[1]) for words in lines if words[0] == "portrait"],
        "long": {"seconds_of_sound": LONG // 50, "rss_mib": memory(driver.lines("hours", LONG))},
    }


def goals(report: JSON) -> JSON:
    """What is wanted of the library, what was measured, and whether that is enough."""
    costs, ended = report["overhead"], report["cancellation"]
    own = costs["outside_total_ms"]["c"]["p50"] - costs["outside_total_ms"]["python"]["p50"]
    found = {"a call through C over one from Python, ms": (own, 0.2)}
    if "late_ms" in ended:
        found["p95 of a cancelled call's end after the wish, less a step, ms"] = (ended["p95_less_step_ms"], 20.0)
    if "soak" in report:
        lasted = report["soak"]
        found["memory per 1,000 calls, MiB"] = (lasted["rss_mib"]["per_1000"], 1.0)
        found["p99 of the last tenth over the first"] = (lasted["p99_last_tenth_over_first"], 1.1)
    return {
        name: {"measured": round(value, 4), "at_most": most, "holds": value <= most}
        for name, (value, most) in found.items()
    }


def table(report: JSON) -> str:
    """Markdown: what the report says, a line each."""
    costs, ended, begun, heard = (report[part] for part in ("overhead", "cancellation", "starts", "streams"))
    rows = [
        ("call from C, p50", f"{costs['wall_ms']['c']['p50']:.3f} ms"),
        ("the same from Python, p50", f"{costs['wall_ms']['python']['p50']:.3f} ms"),
        ("C over Python", f"{costs['c_over_python_ms']:+.3f} ms, {costs['c_over_python_percent']:+.2f} %"),
        ("outside the library's own total, C", f"{costs['outside_total_ms']['c']['p50']:.3f} ms"),
        ("the same, Python", f"{costs['outside_total_ms']['python']['p50']:.3f} ms"),
        ("one step, p50", f"{ended['step_ms']['p50']:.1f} ms"),
        ("cancelled, p95 after the wish", f"{ended['late_ms']['p95']:.1f} ms" if "late_ms" in ended else "never"),
        ("s2f_open in a fresh process, p50", f"{begun['open_ms']['p50']:.0f} ms"),
        ("first portrait then, p50", f"{begun['first_ms']['p50']:.1f} ms"),
        ("s2f_close, p50", f"{begun['close_ms']['p50']:.1f} ms"),
        ("memory with 0, 1, 2 pipelines", ", ".join(f"{begun[f'rss_mib_with_{n}']['p50']:.0f}" for n in range(3))),
        ("a push of 20 ms, p50, p99", f"{heard['push_ms']['p50']:.3f}, {heard['push_ms']['p99']:.3f} ms"),
        ("a poll, p50, p99", f"{heard['poll_ms']['p50']:.3f}, {heard['poll_ms']['p99']:.3f} ms"),
        ("portraits after so much sound", ", ".join(f"{seconds:.2f}" for seconds in heard["portraits_s"]) + " s"),
        (f"stream of {heard['long']['seconds_of_sound']} s", in_words(heard["long"]["rss_mib"], "pieces")),
    ]
    if "soak" in report:
        lasted = report["soak"]
        rows += [
            (f"{lasted['calls']} calls", in_words(lasted["rss_mib"], "calls")),
            ("p99 of the last tenth over the first", f"{lasted['p99_last_tenth_over_first']:.3f}"),
        ]
    for name, goal in report["goals"].items():
        rows.append((f"goal: {name}", f"{goal['measured']:g}, at most {goal['at_most']:g}: {_YES_NO[goal['holds']]}"))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def in_words(memory_of: JSON, things: str) -> str:
    """Memory over a soak as a cell of the table."""
    settled, last, slope = (memory_of[name] for name in ("settled", "last", "per_1000"))
    return f"{settled:.1f} MiB settled, {last:.1f} MiB at the end, {slope:+.3f} MiB per 1,000 {things}"


def measure(options: argparse.Namespace) -> JSON:
    """The whole report. Raises the BundleXxx errors, BackendMissing, BackendFailed."""
    with runtime.load(options.bundle, device="cpu", threads=options.threads) as pipeline:
        bundle = {"name": pipeline.manifest.name, "sha256": pipeline.identity}
        settings = {"threads": pipeline.threads, "steps": options.steps or pipeline.manifest.default_steps}
    before = load_average()
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(Path(folder), options.prefix, options)
        report = {
            "kind": "s2f-capi",
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "version": runtime.__version__,
            "bundle": bundle,
            "settings": {"device": "cpu", **settings},
            "machine": {"cpu": cpu_model(), "usable_cores": usable_cores(), "load_before": before},
            "versions": {"python": platform.python_version(), **package_versions()},
            "starts": starts(driver),
            "overhead": overhead(driver, options),
            "cancellation": cancellation(driver),
            "streams": streams(driver),
        }
        if options.soak:
            report["soak"] = soak(driver, options.soak)
    report["goals"] = goals(report)
    report["machine"]["load_after"] = load_average()
    return report


def main() -> int:
    """Measures, prints the table and writes the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prefix", type=Path, help="folder that s2f-capi build -o wrote")
    parser.add_argument("--bundle", type=Path, default=shipped_bundle())
    parser.add_argument("--steps", type=int, help="default: the bundle's")
    parser.add_argument("--threads", type=int, help="default: the physical cores usable here")
    parser.add_argument("--soak", type=int, default=10_000, metavar="N", help="calls of the soak (default 10000)")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        check_writable(options.out)
        report = measure(options)
        write_file(options.out, (json.dumps(report, indent=1) + "\n").encode())
    except S2FError as error:
        sys.stderr.write(f"capi: error [{error.code}]: {error}\n")
        return error.code
    sys.stdout.write(table(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
