"""Rewrites what README.md and docs/benchmarks.md say of speed, and the README's picture, from the committed JSON.

python -m benchmarks.readme [--check]

A part of a document that is made here stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; DOCUMENTS says
which parts are in which document. --check writes nothing, fails where a document is not what would be written, and
names the files that were measured with another bundle than the one that is shipped. The picture needs matplotlib.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cold_table
from benchmarks.peers import report as arena
from runtime.bench import read_report, table
from runtime.bundle import read_manifest
from runtime.errors import S2FError
from runtime.output import write_file
from runtime.pipeline import shipped_bundle

ROOT = Path(__file__).parent.parent
README, BENCHMARKS, PICTURE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "latency.png"
RESULTS = Path("benchmarks/results")
PEERS, COLD = RESULTS / "peers.json", RESULTS / "cold.json"
DEMOS = "demo-*-steps4.json"
"""The shipped bundle at its default steps, a file per device of the CPU."""
DEMO, GATE = RESULTS / "demo-cpu-steps4.json", RESULTS / "gate.json"
CALIBRATION = RESULTS / "calibration" / "report.json"
OF_THE_BUNDLE = (
    *("baselines/*.json", "results/demo-*.json", "results/cold.json", "results/cpu-backends.json"),
    *("results/floor.json", "results/gate.json", "results/peers.json"),
)
"""Files in benchmarks/ that hold for one bundle, which they name."""
JSON = dict[str, Any]

COLUMNS = ("p50", "p90", "p99", "min")
ROWS = {
    "audio": "speech to window (PCM in memory)",
    "encoder": "encoder",
    "step": "one step",
    "decoder": "decoder",
    "end_to_end": "**PCM to pixels, {steps} steps**",
    "file_to_pixels": "file in memory (48 kHz WAV) to pixels",
    "encode_png": "PNG with its mark",
}


def headline() -> str:
    """Milliseconds of the first sentence."""
    return f"{_shown(read_report(ROOT / DEMO))['end_to_end']['p50']:.0f} ms"


def how_fast() -> str:
    """The table of the demo bundle, what happens once, and the picture."""
    report = read_report(ROOT / DEMO)
    shown, settings, machine, process = (*(_shown(report), report["settings"], report["machine"], report["process"]),)
    once = {name: values["p50"] for name, values in report["once_ms"].items()}
    rows = [["ms", *COLUMNS]]
    for stage, name in ROWS.items():
        mark = "**" if stage == "end_to_end" else ""
        cells = [f"{mark}{shown[stage][column]:.1f}{mark}" for column in COLUMNS]
        rows.append([name.format(steps=settings["steps"]), *cells])
    ratio = shown["end_to_end"]["p99"] / shown["end_to_end"]["p50"]
    return "\n".join(
        [
            f"`s2f bench` on the shipped demo bundle at its default of {settings['steps']} steps: "
            f"{machine['usable_cores']} cores of an {machine['cpu']} ({_kernels(machine['cpu_flags'])}), "
            f"{_drawn_with(report)}, {settings['warmup']} warm-up calls, {_calls(report)} "
            f"([JSON with raw values]({DEMO})):",
            "",
            *table(rows),
            "",
            f"p99 / p50 of the whole call is {ratio:.2f}. Cold process to saved PNG {once['process_to_png'] / 1e3:.2f} "
            f"s, loading and the first portrait {once['first_portrait'] / 1e3:.2f} s, `import runtime` "
            f"{once['import_runtime']:.0f} ms (everything it can need: {once['import_all']:.0f} ms), peak memory "
            f"{process['peak_rss_mib']:.0f} MiB (a cold process {process['cold_peak_rss_mib']:.0f} MiB), CPU between "
            f"calls {process['idle_cpu_ms_per_s'] / 10:.3f} %.{_once(report)}",
            "",
            f"![Distribution of the calls, and the stages](docs/{PICTURE.name})",
        ]
    )


def openvino() -> str:
    """The shipped bundle by device of the CPU, a column per report of `s2f bench`."""
    places = sorted(path.relative_to(ROOT) for path in (ROOT / RESULTS).glob(DEMOS))
    found = [read_report(ROOT / place) for place in places]
    rows = [["ms, p50", *map(_drawn_with, found)]]
    for stage in ("encoder", "step", "decoder", "end_to_end"):
        mark = "**" if stage == "end_to_end" else ""
        cells = [f"{mark}{_shown(report)[stage]['p50']:.1f}{mark}" for report in found]
        rows.append([ROWS[stage].format(steps=found[0]["settings"]["steps"]), *cells])
    rows += [
        ["the same, p99", *(f"{_shown(report)['end_to_end']['p99']:.1f}" for report in found)],
        ["cold process to saved PNG", *(f"{report['once_ms']['process_to_png']['p50']:.0f}" for report in found)],
        ["its peak memory, MiB", *(f"{report['process']['cold_peak_rss_mib']:.0f}" for report in found)],
    ]
    made = [
        f"{report['settings']['device']}: {_calls(report)} on {report['machine']['id']} ([JSON]({at}))"
        for at, report in zip(places, found, strict=True)
    ]
    return "\n".join([f"`s2f bench --device DEVICE`; {'; '.join(made)}:", "", *table(rows)])


def _drawn_with(report: JSON) -> str:
    """Library, precision, threads, and whether the graphs came from the cache."""
    settings, versions = report["settings"], report["versions"]
    library = {"cpu": "ONNX Runtime", "openvino": "OpenVINO"}[settings["device"]]
    version = versions["openvino" if settings["device"] == "openvino" else "onnxruntime"]
    prepared = "prepared" if settings["prepared"] else "not prepared"
    return f"{library} {version}, {settings['precision']}, {settings['threads']} threads, {prepared}"


def gate() -> str:
    """What the gate made of reruns, of a slowed build and of a busy machine."""
    found = json.loads((ROOT / GATE).read_text(encoding="utf-8"))
    same, slow, busy = found["same_build"], found["slowed"], found["busy"]
    ranges = [f"{one['least']:.2f} to {one['most']:.2f}" if one["judged"] else "none" for one in (same, slow)]
    return (
        f"With the limit at {found['limit']:g}, of {same['runs']} reruns of one build on a shared machine "
        f"{same['judged']} found enough undisturbed calls to be judged; {same['called_slower'] or 'none'} was called "
        f"slower (ratios of p5: {ranges[0]}). With a sleep of {100 * found['sleep']:.0f} % put in after every call, "
        f"{slow['judged']} of {slow['runs']} were judged, in {slow['tries']} tries, and {slow['called_slower']} called "
        f"slower (ratios {ranges[1]}). With a loop burning every CPU, {busy['dirty']} of {busy['runs']} runs were "
        f"marked dirty, {busy['returned']} ended as usual and {busy['called_slower'] or 'none'} was called slower "
        f"([JSON]({GATE}), `python -m benchmarks.gate`)."
    )


def eight_bits() -> str:
    """What the gate of calibration measured, and the times of its report."""
    found = json.loads((ROOT / CALIBRATION).read_text(encoding="utf-8"))
    rows = [["against float32", "PSNR, dB", "1 % below", "worst", "cosine", "sex / age / attributes agree, %", "MB"]]
    named = [("weights stored in eight bits", found["stored"], found["sizes"]["float32"])]
    for family, one in found["variants"].items():
        named += [(f"**{family}**", one["quality"], found["sizes"][family])]
        named += [(f"{family}, simply everything", one["everything"], None)]
    for name, quality, size in named:
        psnr = quality["psnr"]
        agree = " / ".join(f"{quality[key]:.1f}" for key in ("sex", "age", "attributes"))
        numbers = f"{np.mean(psnr):.1f}", f"{np.percentile(psnr, 1):.1f}", f"{min(psnr):.1f}"
        rows.append([name, *numbers, f"{np.mean(quality['cosine']):.4f}", agree, f"{size / 1e6:.1f}" if size else ""])
    times = {(one["device"], one["precision"], one["threads"]): one["p50"] for one in found["latency_ms"]}
    counts = sorted({threads for _, _, threads in times}, reverse=True)
    kinds = list(dict.fromkeys((device, precision) for device, precision, _ in times))
    heads = ["ms, one portrait", *(f"{n} thread{'s' if n > 1 else ''}" for n in counts)]
    speed = [heads, *([f"{d}, {p}", *(f"{times[d, p, n]:.1f}" for n in counts)] for d, p in kinds)]
    told = f"Over {len(found['stored']['psnr'])} pairs of voice and seed ([report]({CALIBRATION.with_suffix('.md')})):"
    return "\n".join([told, "", *table(rows), "", "The same portraits in one run, taking turns:", "", *table(speed)])


def peers() -> str:
    """Ours beside what others would do, with all cores and with one thread."""
    report = arena.read(ROOT / PEERS)
    contests = report["contests"]
    found = [arena.summarise(contest).get("arms", {}) for contest in contests]
    columns = [arena.threads_in_words(contest) for contest in contests]
    rows = [["ms, p50 (× our fastest, 95 % interval)", *columns, "PSNR, dB"]]
    for name in dict.fromkeys(name for arms in found for name in sorted(arms, key=lambda arm: arms[arm]["p50"])):
        measured = next(contest["arms"][name] for contest, arms in zip(contests, found, strict=True) if name in arms)
        quality = arena.quality_in_words(measured, report["arms"][name])[0]
        cells = [name, *(_against(arms.get(name)) for arms in found), quality]
        rows.append([f"**{cell}**" if name.startswith(arena.OURS) else cell for cell in cells])
    goals = [list(arena.goals(contest)) for contest in contests]
    open_ends = [
        f"- {goal['ours']} against {goal['peer']} ({'; '.join(goal['compared'])}) with {words}: "
        f"{arena.times_in_words(goal['times'])}, wanted {arena.wanted_in_words(goal['wanted'])}, {goal['verdict']}"
        for some, words in zip(goals, columns, strict=True)
        for goal in some
        if goal["verdict"] not in ("met", arena.TOLD, arena.UNKNOWN, arena.UNSURE)
    ]
    unsure = sum(goal["verdict"] == arena.UNSURE for some in goals for goal in some)
    if unsure:
        tables = PEERS.with_suffix(".md")
        open_ends.append(
            f"- {unsure} more are met, but their intervals reach below what is wanted ([all goals]({tables}))"
        )
    unknown = dict.fromkeys(
        f"{goal['ours']} against {goal['peer']}" for some in goals for goal in some if goal["verdict"] == arena.UNKNOWN
    )
    return "\n".join(
        [
            "Every arm a process of its own, taking turns, the same speech, noise and weights (but diffusers': random) "
            f"([JSON]({PEERS}), `python -m benchmarks.peers`; [what each arm is](docs/benchmarks.md)). Milliseconds "
            "are of an arm's undisturbed rounds. The ratio in brackets is the median of the ratios of single rounds "
            "in which neither arm was disturbed, so it is not the quotient of the two numbers shown:",
            "",
            *table(rows),
            "",
            *(["What was aimed at is met, but for:", "", *open_ends] if open_ends else ["What was aimed at is met."]),
            *(["", f"Not measured: {'; '.join(unknown)}."] if unknown else []),
        ]
    )


def _against(arm: JSON | None) -> str:
    """The median of an arm and its ratio to the fastest of ours, if it is another; a dash where it was not measured."""
    if arm is None:
        return "—"
    times = arm["times"]
    ratio = f" ({times['value']:.2f}, {times['low']:.2f}–{times['high']:.2f})" if times and not arm["base"] else ""
    return f"{arm['p50']:.1f}{ratio}"


def cold() -> str:
    """The steps of a cold start, as its own command prints them."""
    return cold_table.tables(json.loads((ROOT / COLD).read_text(encoding="utf-8")))


DOCUMENTS: dict[Path, dict[str, Callable[[], str]]] = {
    README: {
        "headline": headline,
        "how fast": how_fast,
        "peers": peers,
        "openvino": openvino,
        "eight bits": eight_bits,
        "gate": gate,
    },
    BENCHMARKS: {"cold start": cold},
}
INLINE = ("headline",)


def rewritten(document: str, parts: dict[str, str]) -> str:
    """The document with each part between its markers. ValueError where a part's markers are not there once each."""
    for name, text in parts.items():
        begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
        if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
            raise ValueError(f"The document has not one {begin} and one {end} after it")
        inner = text if name in INLINE else f"\n\n{text}\n\n"
        document = re.sub(f"{begin}.*{end}", lambda _, t=f"{begin}{inner}{end}": t, document, flags=re.DOTALL)
    return document


def made(document: Path) -> str:
    """A document as it should be. Raises InvalidArgument, ParityFailed for results that are none."""
    return rewritten(document.read_text(encoding="utf-8"), {name: make() for name, make in DOCUMENTS[document].items()})


def stale() -> list[str]:
    """The files that were measured with another bundle than the shipped one, or name none."""
    identity = read_manifest(shipped_bundle())[1]
    places = sorted({path for pattern in OF_THE_BUNDLE for path in (ROOT / "benchmarks").glob(pattern)})
    return [str(path.relative_to(ROOT)) for path in places if _bundle_of(path) != identity]


def _bundle_of(path: Path) -> str | None:
    """The identity of the bundle of a report."""
    bundle = json.loads(path.read_text(encoding="utf-8")).get("bundle")
    return bundle["sha256"] if isinstance(bundle, dict) else bundle


def _shown(report: JSON) -> JSON:
    """All calls of a clean run; else the undisturbed ones, if any: other programs are no part of this one."""
    clean = not report["conditions"]["calls"]["dirty"]
    shown: JSON = report["stages_ms"] if clean else report["quiet_ms"] or report["stages_ms"]
    return shown


def _calls(report: JSON) -> str:
    every, shown = report["stages_ms"]["end_to_end"]["count"], _shown(report)["end_to_end"]["count"]
    if every == shown and not report["conditions"]["calls"]["dirty"]:
        return f"{every} timed calls"
    if not report["quiet_ms"]:
        return f"{every} timed calls, **all of them disturbed by other programs**"
    return f"the {shown} of {every} timed calls that other programs did not disturb"


def _once(report: JSON) -> str:
    dirty = report["conditions"]["once"]["dirty"]
    return f" Other programs used {report['conditions']['once']['others']:.0%} of the CPU meanwhile." if dirty else ""


def _kernels(flags: list[str]) -> str:
    names = {"avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "bf16", "amx_tile": "AMX"}
    return ", ".join(name for flag, name in names.items() if flag in flags) or " ".join(flags)


def main() -> int:
    """Writes the documents and the picture, or says which documents are not up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a document is another")
    options = parser.parse_args()
    try:
        found = {document: made(document) for document in DOCUMENTS}
        if options.check:
            if other := stale():
                sys.stderr.write(f"warning: measured with another bundle than the shipped one: {', '.join(other)}\n")
            old = [path.name for path, text in found.items() if path.read_text(encoding="utf-8") != text]
            sys.stderr.write("".join(f"{name} is not up to date: python -m benchmarks.readme\n" for name in old))
            return 1 if old else 0
        from benchmarks.plots import draw

        draw({"demo, 4 steps": read_report(ROOT / DEMO)}, PICTURE)
        for document, text in found.items():
            write_file(document, text.encode())
    except S2FError as error:
        sys.stderr.write(f"readme: error [{error.code}]: {error}\n")
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
