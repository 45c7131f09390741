"""What a stream does with real recordings: how soon the first portrait comes, whether the face settles, what the gate
lets through.

    python benchmarks/stream_demo.py --speech FOLDER [--row RECORDING …]… [--silero MODEL] -o OUT.json [--sheet OUT.jpg]

Every recording is resampled to 48 kHz and pushed in pieces of 20 ms, as a conference device delivers them, but faster
than real time: times are those of the sound unless they are called wall. `FOLDER` is what `s2f-train corpus --speech`
takes; its test and validation speakers were not heard in training. Those with 8.5 s of speech or more are measured.
Each `--row` is one speaker in the sheet, of one recording or several joined. `--silero`: silero_vad.onnx of the package
silero-vad, to compare the gate with.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import soundfile
import soxr
from PIL import Image, ImageDraw

import runtime
from runtime.audio import fit_window, normalise_level
from runtime.bench import synthetic_speech
from runtime.gate import Detector, Energy, Gate, Silero
from runtime.machine import cpu_model, usable_cores
from runtime.pipeline import shipped_bundle
from runtime.portrait import save_marked
from runtime.specs import SAMPLE_RATE, SAMPLES
from runtime.stream import FIRST, SHORTEST, Estimate
from training.corpus.pairing import assign_splits
from training.corpus.voices import Speaker, read_speakers
from training.evaluate.judge import Judge, load_judge
from training.evaluate.metrics import cosine

PUSH_RATE = 48_000
POINTS = (1, 2, 4, 8)
CAPTION = 14
DESCRIPTION = "Plausible portraits drawn by a model from growing lengths of speech. They show no real person."
Floats = npt.NDArray[np.float64]
Sound = npt.NDArray[np.float32]


@dataclasses.dataclass
class Followed:
    """One recording through one stream. `portraits` by seconds of speech, the last one of all there was; `due`: seconds
    of sound pushed when each was due; `first`: the same for the first, from where speech began.
    """

    portraits: dict[float, runtime.Portrait] = dataclasses.field(default_factory=dict)
    due: list[float] = dataclasses.field(default_factory=list)
    first: float = 0.0
    first_wall_ms: float = 0.0
    push_us: list[float] = dataclasses.field(default_factory=list)


def follow(pipeline: runtime.Pipeline, sound: Sound, seed: int) -> Followed:
    """Push sound, 16 kHz, and wait for each portrait that is due."""
    told, begin = Followed(), onset(sound)
    due = FIRST / SAMPLE_RATE
    pushed = soxr.resample(sound, SAMPLE_RATE, PUSH_RATE)
    with pipeline.stream(PUSH_RATE, seed=seed) as stream:
        for start in range(0, pushed.size, PUSH_RATE // 50):
            clock = time.perf_counter()
            stream.push(pushed[start : start + PUSH_RATE // 50])
            told.push_us.append((time.perf_counter() - clock) * 1e6)
            if stream.speech_seconds >= due:
                while (portrait := stream.poll()) is None:
                    time.sleep(0.0005)
                told.portraits[stream.portrait_seconds] = portrait
                told.due.append(round(stream.heard_seconds, 2))
                due *= 2
        portrait = stream.finish()
        told.portraits[stream.portrait_seconds] = portrait
        told.due.append(round(stream.heard_seconds, 2))
        told.first, told.first_wall_ms = told.due[0] - begin, (stream.first_portrait_wall_seconds or 0) * 1e3
    return told


def onset(sound: Sound) -> float:
    """Seconds until speech begins, as the gate finds it."""
    gate = Gate(Energy())
    part = next(gate.take(sound))
    return (gate.position - part.size) / SAMPLE_RATE


def gated(sound: Sound, judge: Detector) -> npt.NDArray[np.bool_]:
    """Which samples pass."""
    gate, passed = Gate(judge), np.zeros(sound.size, bool)
    for part in gate.take(sound):
        passed[gate.position - part.size : gate.position] = True
    return passed


class Encoder:
    """The bundle's encoder by itself, for the conditions that a stream keeps to itself."""

    def __init__(self, bundle: Path) -> None:
        self._session = onnxruntime.InferenceSession(bundle / "encoder.onnx", providers=["CPUExecutionProvider"])

    def estimate(self, speech: Sound) -> Floats:
        """The condition of a stream after this speech, [tokens · width]."""
        known = Estimate()
        for start in range(0, speech.size, SAMPLES):
            part = speech[start : start + SAMPLES]
            if part.size >= SHORTEST:
                window = normalise_level(fit_window(part, SAMPLES))[None]
                known.add(self._session.run(["condition"], {"pcm": window})[0][0], part.size)
        return known.mean().reshape(-1).astype(np.float64)


def settling(pipeline: runtime.Pipeline, encoder: Encoder, judge: Judge, chosen: list[Speaker], seeds: int) -> Any:
    """Cosines between successive portraits and conditions, and to the last: means over speakers and seeds."""
    steps = [f"{a} to {b}" for a, b in itertools.pairwise([*(f"{point} s" for point in POINTS), "all"])]
    features = np.zeros((len(chosen), seeds, len(POINTS) + 1, 0))
    conditions, firsts, walls, lengths = [], [], [], []
    male = np.zeros(features.shape[:3])
    for number, speaker in enumerate(chosen):
        sound, _ = soundfile.read(speaker.path, dtype="float32")
        speech = sound[gated(sound, Energy())]
        lengths.append(speech.size / SAMPLE_RATE)
        conditions.append([encoder.estimate(speech[: point * SAMPLE_RATE]) for point in (*POINTS, 60)])
        for seed in range(seeds):
            told = follow(pipeline, sound, seed)
            last = list(told.portraits.values())[-1]
            portraits = [*(told.portraits[point] for point in POINTS), last]
            firsts.append(told.first)
            walls.append(told.first_wall_ms)
            readings = judge.read(np.stack([portrait.image for portrait in portraits]))
            male[number, seed] = readings.male
            if not features.size:
                features = np.zeros((*features.shape[:3], readings.features.shape[1]))
            features[number, seed] = readings.features
    is_male = np.array([speaker.sex == "M" for speaker in chosen])
    known = np.array(conditions)
    successive = cosine(features[:, :, :-1], features[:, :, 1:])
    return {
        "speakers": len(chosen),
        "seeds": seeds,
        "speech_s": {"mean": round(float(np.mean(lengths)), 1), "max": round(max(lengths), 1)},
        "identity_cosine": {
            "successive": table(steps, successive.mean(axis=1)),
            "to_the_last": table([f"{p} s" for p in POINTS], cosine(features[:, :, :-1], features[:, :, -1:]).mean(1)),
            "other_speakers": round(strangers(features[:, :, -1]), 3),
        },
        "condition_cosine": {
            "successive": table(steps, cosine(known[:, :-1], known[:, 1:])),
            "to_the_last": table([f"{p} s" for p in POINTS], cosine(known[:, :-1], known[:, -1:])),
            "other_speakers": round(strangers(known[:, None, -1]), 3),
        },
        "last_step_above_first_percent": round(100 * float(np.mean(successive[:, :, -1] > successive[:, :, 0])), 1),
        "sex_as_the_voice_percent": {
            name: round(100 * float(np.mean((male[:, :, i] > 0.5) == is_male[:, None])), 1)
            for i, name in enumerate([*(f"{point} s" for point in POINTS), "all"])
        },
        "first_portrait_sound_s": {
            **spread(firsts),
            "within_1.2_percent": round(100 * np.mean(np.round(firsts, 3) <= 1.2)),
        },
        "first_portrait_wall_ms": spread(walls),
    }


def table(names: Sequence[str], values: Floats) -> dict[str, Any]:
    """Mean and standard error over the rows of [n, len(names)]."""
    errors = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    means = values.mean(axis=0)
    return {
        n: {"mean": round(float(m), 3), "se": round(float(e), 3)} for n, m, e in zip(names, means, errors, strict=True)
    }


def strangers(features: Floats) -> float:
    """Mean cosine between different speakers, same seed, [n, seeds, F]."""
    pairs = list(itertools.combinations(range(len(features)), 2))
    return float(np.mean([cosine(features[a], features[b]).mean() for a, b in pairs]))


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and max."""
    return {name: round(float(np.percentile(values, q)), 3) for name, q in (("p50", 50), ("p95", 95), ("max", 100))}


def coloured(seconds: float, slope: float, rng: np.random.Generator) -> Floats:
    """Noise of deviation 1 whose power falls with frequency to the power of 2 · slope."""
    spectrum = np.fft.rfft(rng.standard_normal(round(seconds * SAMPLE_RATE)))
    spectrum[1:] /= np.arange(1, spectrum.size) ** slope
    spectrum[0] = 0
    signal = np.fft.irfft(spectrum)
    return np.asarray(signal / signal.std())


def struck(seconds: float, per_second: float, one: Callable[[np.random.Generator], Floats], rng: Any) -> Floats:
    """`one` again and again, at times that are drawn."""
    signal = np.zeros(round(seconds * SAMPLE_RATE))
    for start in rng.integers(0, signal.size - SAMPLE_RATE // 2, round(seconds * per_second)):
        sound = one(rng)
        signal[start : start + sound.size] += sound
    return signal


def noises(seconds: float, heard: list[Speaker]) -> dict[str, Floats]:
    """Sounds that are no speaker, and one that is too many."""
    rng = np.random.default_rng(11)
    t, k = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE, np.arange(SAMPLE_RATE // 4)
    gusts = np.interp(t, np.arange(seconds + 1), rng.uniform(0.05, 1, round(seconds) + 1))
    ring = lambda r, low, high: np.sin(2 * np.pi * r.uniform(low, high) * k / SAMPLE_RATE)  # noqa: E731
    crowd = [soundfile.read(speaker.path)[0] for speaker in heard[:8]]
    return {
        "white noise": coloured(seconds, 0, rng),
        "pink noise": coloured(seconds, 0.5, rng),
        "brown noise": coloured(seconds, 1, rng),
        "hum of 50 Hz": np.asarray(sum(np.sin(2 * np.pi * 50 * h * t) / h for h in range(1, 8))),
        "wind": coloured(seconds, 1, rng) * gusts,
        "typing": struck(seconds, 5, lambda r: r.standard_normal(k.size) * np.exp(-k / 120), rng),
        "knocks that ring": struck(seconds, 1.5, lambda r: ring(r, 120, 300) * np.exp(-k / 600), rng),
        "beeps": np.sin(2 * np.pi * 440 * t) * (t % 1 < 0.4),
        "melody": struck(seconds, 3, lambda r: ring(r, 220, 440) * np.exp(-k / 3000), rng),
        "eight talkers": np.asarray(sum(np.resize(one / one.std(), t.size) for one in crowd)),
    }


def gating(speakers: list[Speaker], splits: dict[str, str], silero: Path | None) -> dict[str, Any]:
    """Seconds per minute of noise that pass; and of clean and noisy speech, what passes, against silero's model."""
    makers: dict[str, Callable[[], Detector]] = {"energy": Energy}
    if silero:
        makers["silero"] = lambda: Silero(silero)
    unheard = [speaker for speaker in speakers if splits[speaker.name] != "train"]
    minute = noises(60, [speaker for speaker in speakers if splits[speaker.name] == "train"])
    report: dict[str, Any] = {"seconds_of_a_minute_that_pass": {}, "speech": {}}
    for name, noise in minute.items():
        sound = (0.03 * noise / noise.std()).astype(np.float32)
        passed = {kind: round(float(gated(sound, make()).mean() * 60), 1) for kind, make in makers.items()}
        report["seconds_of_a_minute_that_pass"][name] = passed
    if not silero:
        return report
    for name, snr in (
        ("clean", np.inf),
        *itertools.product(("white noise", "pink noise", "wind", "typing"), (20, 10, 5, 0)),
    ):
        shares = []
        for speaker in unheard:
            voice, _ = soundfile.read(speaker.path)
            truth = np.pad(voices(voice.astype(np.float32), silero), (SAMPLE_RATE, 2 * SAMPLE_RATE))
            sound = np.pad(0.05 * voice / voice.std(), (SAMPLE_RATE, 2 * SAMPLE_RATE))
            if name in minute:
                part = minute[name][: sound.size]
                sound = sound + 0.05 * part / part.std() * 10 ** (-snr / 20)
            through = gated(sound.astype(np.float32), Energy())
            near = np.convolve(truth, np.ones(2 * SAMPLE_RATE * 3 // 10), "same") > 0.5
            shares.append(((through & truth).sum() / truth.sum(), (through & near).sum() / max(1, through.sum())))
        found, right = np.mean(shares, axis=0)
        label = name if name == "clean" else f"{name}, {snr} dB"
        report["speech"][label] = {
            "of_speech_passes": round(float(found), 3),
            "of_passed_near_speech": round(float(right), 3),
        }
    return report


def voices(sound: Sound, silero: Path) -> npt.NDArray[np.bool_]:
    """Which samples silero's model calls voice, before any hangover."""
    judge = Silero(silero)
    count = sound.size // judge.piece
    heard = [judge.hears(piece) for piece in sound[: count * judge.piece].reshape(count, judge.piece)]
    return np.pad(np.repeat(heard, judge.piece), (0, sound.size - count * judge.piece))


def sheet_rows(
    pipeline: runtime.Pipeline, judge: Judge, rows: list[list[Path]], seed: int
) -> tuple[list[Followed], list[dict[str, Any]]]:
    """The portraits of each row, and what is to be said about them."""
    followed, facts = [], []
    for paths in rows:
        parts = [soundfile.read(path, dtype="float32") for path in paths]
        told = follow(pipeline, np.concatenate([soxr.resample(pcm, rate, SAMPLE_RATE) for pcm, rate in parts]), seed)
        features = judge.read(np.stack([portrait.image for portrait in told.portraits.values()])).features
        followed.append(told)
        facts.append(
            {
                "recordings": [path.name for path in paths],
                "sound_s": told.due[-1],
                "speech_s": [round(seconds, 2) for seconds in told.portraits],
                "sound_s_when_due": told.due,
                "identity_cosine_to_the_one_before": np.round(cosine(features[:-1], features[1:]), 3).tolist(),
                "first_portrait_sound_s": round(told.first, 3),
                "first_portrait_wall_ms": round(told.first_wall_ms, 1),
                "push_us": spread(told.push_us),
            }
        )
    return followed, facts


def draw_sheet(followed: list[Followed], path: Path) -> None:
    """A row per speaker, a column per portrait, the seconds of speech under each."""
    size = next(iter(followed[0].portraits.values())).image.shape[0]
    columns = max(len(told.portraits) for told in followed)
    sheet = Image.new("RGB", (columns * size, len(followed) * (size + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, told in enumerate(followed):
        top = row * (size + CAPTION)
        for column, (seconds, portrait) in enumerate(told.portraits.items()):
            sheet.paste(Image.fromarray(portrait.image), (column * size, top))
            draw.text((column * size + 3, top + size + 1), f"{seconds:.3g} s of speech", fill="black")
    portraits = [portrait for told in followed for portrait in told.portraits.values()]
    save_marked(np.asarray(sheet), path, facts=portraits[0].facts, description=DESCRIPTION, quality=85)


def usual_ms(pipeline: runtime.Pipeline, runs: int = 30) -> dict[str, float]:
    """What one `generate` takes here, for comparison."""
    voice = (synthetic_speech(), SAMPLE_RATE)
    return spread([pipeline.generate(voice).timings.total for _ in range(runs)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=shipped_bundle())
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--row", type=Path, nargs="+", action="append", default=[], metavar="RECORDING")
    parser.add_argument("--silero", type=Path)
    parser.add_argument("--seeds", type=int, default=4, help="portraits of each speaker that was not heard in training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        report = measure(options)
    except runtime.S2FError as error:
        sys.stderr.write(f"stream_demo: error [{error.code}]: {error}\n")
        return error.code
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    speakers, judge, encoder = read_speakers(options.speech), load_judge(), Encoder(options.bundle)
    splits = assign_splits(speakers)
    long = [
        one
        for one in speakers
        if gated(soundfile.read(one.path, dtype="float32")[0], Energy()).sum() > 8.5 * SAMPLE_RATE
    ]
    unheard = [one for one in long if splits[one.name] != "train"]
    with runtime.load(options.bundle, device="cpu", threads=options.threads) as pipeline:
        report: dict[str, Any] = {
            "kind": "s2f-stream",
            "bundle": {"name": pipeline.manifest.name, "sha256": pipeline.identity},
            "machine": {"cpu": cpu_model(), "usable_cores": usable_cores(), "threads": pipeline.threads},
            "pushed": f"{PUSH_RATE} Hz in pieces of 20 ms, faster than real time",
            "generate_ms": usual_ms(pipeline),
        }
        if options.row:
            followed, report["rows"] = sheet_rows(pipeline, judge, options.row, seed=7)
            if options.sheet:
                draw_sheet(followed, options.sheet)
        report["settling_unheard"] = settling(pipeline, encoder, judge, unheard, options.seeds)
        heard = [one for one in long if splits[one.name] == "train"]
        report["settling_heard"] = settling(pipeline, encoder, judge, heard, 1)
    report["gate"] = gating(speakers, splits, options.silero)
    return report


if __name__ == "__main__":
    sys.exit(main())
