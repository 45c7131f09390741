"""The cold start, step by step: fresh processes in turn, as shipped and prepared; and what importing takes.

python -m benchmarks.cold -o benchmarks/results/cold.json [--rounds 15]
python -m benchmarks.cold --from benchmarks/results/cold.json    # the tables again, without measuring

Arms take turns process by process, and wait some seconds for quiet. Arms of one device have one precision, what "auto"
takes there once both devices are prepared, so that they differ in preparation alone; `cpu` and `cpu, prepared` must
draw the same, byte for byte. The files have been read before, so they come out of the system's memory. A process beside
which others used more than 6 % of the CPU time is kept in the JSON and left out of the tables while three or more of
its arm are clean. Needs the packages of `.[cpu,export]` and openvino.
"""

import argparse
import hashlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cold_table import check_alike, tables
from export import openvino, ort_cpu
from runtime.bench.disturbance import between, snapshot, wait_for_quiet
from runtime.bench.speech import synthetic_speech, wav_bytes
from runtime.bundle import read_bundle
from runtime.doctor import package_versions
from runtime.errors import S2FError
from runtime.machine import cpu_flags, cpu_model, load_average, usable_cores
from runtime.output import check_writable, write_file
from runtime.pipeline import settings_for, shipped_bundle

ARMS = {
    "cpu": ("cpu", False),
    "cpu, prepared": ("cpu", True),
    "openvino": ("openvino", False),
    "openvino, prepared": ("openvino", True),
    "auto, prepared": ("auto", True),
}
PATIENCE = 3.0
IMPORTS = "runtime.pipeline, soundfile, soxr, PIL.Image, onnxruntime"
ROOT = Path(__file__).resolve().parent.parent

JSON = dict[str, Any]


def cold_starts(folder: Path, rounds: int, scratch: Path) -> dict[str, list[JSON]]:
    """What each process said of itself, with the whole time and what others did meanwhile, by arm.

    Raises what preparing raises, ParityFailed where preparing changes the portraits of the CPU.
    """
    speech = scratch / "speech.wav"
    speech.write_bytes(wav_bytes(synthetic_speech(), 16000))
    caches = {prepared: scratch / ("prepared" if prepared else "empty") for prepared in (False, True)}
    os.environ["S2F_CACHE"] = str(caches[True])
    bundle = read_bundle(folder)
    for prepare in (openvino.prepare, ort_cpu.prepare):
        prepare(bundle, lambda line: sys.stderr.write(f"{line}\n"))
    precisions = {device: settings_for(bundle.manifest, device).precision for device in ("cpu", "openvino")}
    found: dict[str, list[JSON]] = {name: [] for name in ARMS}
    names = list(ARMS)
    for number in range(-1, rounds):  # the first finds files that nobody has read yet
        for name in names[number % len(names) :] + names[: number % len(names)]:
            device, prepared = ARMS[name]
            one = cold_start(folder, (device, precisions.get(device, "auto")), caches[prepared], speech)
            if number >= 0:
                found[name].append(one)
    check_alike(found)
    return found


def cold_start(folder: Path, drawn_with: tuple[str, str], cache: Path, speech: Path) -> JSON:
    """One process, from before it is started until it has ended. `drawn_with`: device and precision."""
    wait_for_quiet(time.monotonic() + PATIENCE)
    before, begin = snapshot(), time.perf_counter()
    arguments = [repr(begin), str(folder), *drawn_with, str(speech), str(speech.with_suffix(".png"))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cold_child", *arguments],
        cwd=ROOT,
        env={**os.environ, "S2F_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    whole = (time.perf_counter() - begin) * 1e3
    said: JSON = json.loads(done.stdout)
    said["ms"]["end of the process"] = whole - sum(said["ms"].values())
    said["ms"]["all"] = whole
    return {**said, "others": between(before, snapshot())["others"]}


def imports(rounds: int) -> dict[str, float]:
    """Milliseconds of importing by package, what it imports in turn not included; the least of several processes."""
    least: dict[str, float] = {}
    for _ in range(rounds):
        command = [sys.executable, "-X", "importtime", "-c", f"import {IMPORTS}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        spent: dict[str, float] = {}
        for line in done.stderr.splitlines():
            own, _, name = line.removeprefix("import time:").split("|")
            if own.strip().isdigit():
                top = name.strip().partition(".")[0]
                package = "standard library" if top in sys.stdlib_module_names else top
                spent[package] = spent.get(package, 0.0) + int(own) / 1e3
        least = {name: min(value, least.get(name, value)) for name, value in spent.items()}
    return dict(sorted(((n, round(v, 2)) for n, v in least.items() if v >= 0.5), key=lambda pair: -pair[1]))


def files(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of reading and hashing a bundle's graphs: read; mapped; mapped, and copied into bytes, which is what
    ONNX Runtime takes.
    """
    graphs = sorted(folder.glob("*.onnx"))

    def mapped(path: Path, *, copied: bool) -> None:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            hashlib.sha256(bytes(data) if copied else data).digest()

    ways: dict[str, Callable[[Path], object]] = {
        "read": lambda path: hashlib.sha256(path.read_bytes()).digest(),
        "mapped": lambda path: mapped(path, copied=False),
        "mapped and copied": lambda path: mapped(path, copied=True),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            for path in graphs:
                way(path)
            spent[name].append(round((time.perf_counter() - begin) * 1e3, 3))
    return spent


def main() -> int:
    """Measures, prints the tables and writes every value."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--from", dest="source", type=Path, help="a report, to print its tables")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.source is None and options.out is None:
        parser.error("say where the report goes: -o OUT.json")
    try:
        if options.source:
            report = json.loads(options.source.read_text(encoding="utf-8"))
        else:
            check_writable(options.out)
            report = measure(options.rounds)
            write_file(options.out, (json.dumps(report, indent=1) + "\n").encode())
        sys.stdout.write(tables(report) + "\n")
    except S2FError as error:
        sys.stderr.write(f"cold: error [{error.code}]: {error}\n")
        return error.code
    return 0


def measure(rounds: int) -> JSON:
    """The report. Raises what `cold_starts` raises."""
    folder, before = shipped_bundle(), load_average()
    with tempfile.TemporaryDirectory(prefix="s2f-cold-") as scratch:
        found = cold_starts(folder, rounds, Path(scratch))
    return {
        "command": " ".join(["python", "-m", "benchmarks.cold", *sys.argv[1:]]),
        "bundle": read_bundle(folder).identity,
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "cores": usable_cores(),
        "versions": package_versions(),
        "load": [before, load_average()],
        "cold": found,
        "imports_ms": imports(rounds),
        "files_ms": files(folder, rounds),
        "files_mb": sum(path.stat().st_size for path in folder.glob("*.onnx")) / 1e6,
    }


if __name__ == "__main__":
    sys.exit(main())
