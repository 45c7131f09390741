"""Virtual speakers: real recordings taken apart and put together again with the WORLD vocoder (Morise et al. 2016).

A recording is analysed once into F0, spectral envelope and aperiodicity, and measured: median F0, formant scale, speech
rate. A virtual speaker is five absolute numbers (`VoiceParameters`); what has to change is their ratio to the measured
ones, so the numbers in the table are those of the voice that is heard, not of the change that was applied.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import find_peaks

from runtime.errors import BackendMissing, CorpusInvalid
from runtime.specs import SAMPLE_RATE

FRAME_SECONDS = 0.005
FFT_SIZE = 1024
BINS = FFT_SIZE // 2 + 1
F0_FLOOR, F0_CEILING = 60.0, 450.0
REFERENCE_SPACING_HZ = 1030.0  # formant spacing c/2L of a uniform tube of 17 cm: formant scale 1
TREMOR_OF_LOUDNESS = 6.0  # vocal tremor moves intensity too: gain 1 ± this times the depth of F0's
REFERENCE_RATE = 4.3  # syllable nuclei per second of speech: rate 1
# Raise it when the analysis changes: older cache files are made anew, an older corpus is not continued.
ANALYSIS_VERSION = 1
# A measurement on seconds of speech is part voice, part text and error: it is drawn towards what is typical of the sex.
TYPICAL_FORMANT_SCALE = {"F": 1.10, "M": 1.00}
FORMANT_TRUST, RATE_TRUST = 0.4, 0.6
SCALE_LIMITS = {"f0": (0.65, 1.55), "formant": (0.82, 1.22), "rate": (0.68, 1.45)}  # beyond these WORLD sounds broken


@dataclass(frozen=True)
class Speaker:
    """One line of speakers.csv. `sex` is "F" or "M"; `licence` and `source` as written there, empty where not."""

    name: str
    sex: str
    path: Path
    licence: str
    source: str = ""


@dataclass(frozen=True)
class SourceVoice:
    """A recording in WORLD's parts, n frames of 5 ms, and what was measured on it.

    f0: float32 [n], Hz, 0 where unvoiced; log_envelope: float16 [n, 513], natural log of power;
    band_aperiodicity: float32 [n], dB at 3 kHz (WORLD's coding at 16 kHz has this one band).
    f0_hz: median of the voiced frames; formant_scale: formant spacing / 1030 Hz; rate: syllables per second / 4.3.
    """

    f0: np.ndarray
    log_envelope: np.ndarray
    band_aperiodicity: np.ndarray
    f0_hz: float
    formant_scale: float
    rate: float


@dataclass(frozen=True)
class VoiceParameters:
    """A virtual speaker in absolute numbers."""

    f0_hz: float  # median F0
    formant_scale: float  # 1 = a vocal tract of 17 cm, 1.15 = 17 / 1.15 cm
    rate: float  # 1 = 4.3 syllables per second
    breathiness: float  # 0 as recorded … 1 whisper-like above 4 kHz
    tremor: float  # depth of the 5 Hz tremor of F0, as a share of it: 0 … 0.1; loudness and jitter go with it
    f0_range: float = 1.0  # intonation: factor on the log-F0 excursions around the median


def read_speakers(folder: str | os.PathLike[str]) -> list[Speaker]:
    """Speakers of a folder with a speakers.csv (columns file, speaker, sex; optional licence, source), by name."""
    root = Path(folder)
    table = root / "speakers.csv"
    if not table.is_file():
        raise CorpusInvalid(f"{table}: not found; a speech folder has a speakers.csv with file,speaker,sex.")
    with table.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = {"file", "speaker", "sex"} - set(reader.fieldnames or ())
        if missing:
            raise CorpusInvalid(f"{table}: column {', '.join(sorted(missing))} is missing; add it to the header.")
        rows = list(reader)
    speakers: dict[str, Speaker] = {}
    for number, row in enumerate(rows, start=2):
        name, sex, path = row["speaker"] or "", (row["sex"] or "").strip().upper(), root / (row["file"] or "")
        if sex not in {"F", "M"}:
            raise CorpusInvalid(f"{table}:{number}: sex is {row['sex']!r}; write F or M.")
        if not name or name in speakers:
            raise CorpusInvalid(f"{table}:{number}: speaker {name!r} is empty or listed twice; one file per speaker.")
        if not path.is_file():
            raise CorpusInvalid(f"{table}:{number}: {path} not found; correct the name or remove the line.")
        speakers[name] = Speaker(name, sex, path, row.get("licence") or "", row.get("source") or "")
    if not speakers:
        raise CorpusInvalid(f"{table}: lists no speaker.")
    return [speakers[name] for name in sorted(speakers)]


def analyse(pcm: np.ndarray) -> SourceVoice:
    """WORLD analysis (harvest, CheapTrick, D4C) and measurements of pcm: float [samples], 16 kHz mono."""
    world = _world()
    signal = np.ascontiguousarray(pcm, dtype=np.float64)
    f0, times = world.harvest(signal, SAMPLE_RATE, f0_floor=F0_FLOOR, f0_ceil=F0_CEILING, frame_period=5.0)
    f0 = world.stonemask(signal, f0, times, SAMPLE_RATE)
    if np.count_nonzero(f0) < 40:
        raise CorpusInvalid("under 0.2 s of voiced speech found; remove the recording or replace it by a clean one.")
    envelope = world.cheaptrick(signal, f0, times, SAMPLE_RATE, fft_size=FFT_SIZE)
    aperiodicity = world.d4c(signal, f0, times, SAMPLE_RATE, fft_size=FFT_SIZE)
    log_envelope = np.log(np.maximum(envelope, 1e-16))
    coded = world.code_aperiodicity(aperiodicity, SAMPLE_RATE)[:, 0]
    return SourceVoice(
        f0.astype(np.float32), log_envelope.astype(np.float16), coded.astype(np.float32), float(np.median(f0[f0 > 0])),
        measure_formant_scale(log_envelope, f0), measure_rate(log_envelope, f0),
    )  # fmt: skip


def measure_formant_scale(log_envelope: np.ndarray, f0: np.ndarray) -> float:
    """Formant spacing over voiced frames / 1030 Hz; log_envelope [n, 513], f0 [n].

    Linear prediction on the envelope's 0…5.5 kHz (order 12); the resonances F_i between 2 and 5 kHz, where the tube's
    length and not the vowel decides, are fitted by F_i = (i - 1/2) spacing (Lammert & Narayanan 2015).
    """
    loud = _level(log_envelope)
    voiced = (f0 > 0) & (loud > np.percentile(loud[f0 > 0], 30))
    power = np.exp(log_envelope[voiced][:, :353].astype(np.float64))
    frequencies, bandwidths = _resonances(power, ceiling_hz=352 * SAMPLE_RATE / FFT_SIZE, order=12)
    spacings = []
    for found, width in zip(frequencies, bandwidths, strict=True):
        formants = np.sort(found[(found > 200) & (width < 600)])
        if len(formants) >= 4:
            spacings.append(np.mean(formants[2:4] / np.array([2.5, 3.5])))
    return float(np.median(spacings) / REFERENCE_SPACING_HZ) if len(spacings) >= 10 else 1.0


def measure_rate(log_envelope: np.ndarray, f0: np.ndarray) -> float:
    """Syllable nuclei (voiced intensity peaks of 2 dB, de Jong & Wempe 2009) per second without pauses / 4.3."""
    level = uniform_filter1d(_level(log_envelope), 9)
    floor = np.percentile(level, 98) - 25.0
    peaks, _ = find_peaks(level, prominence=2.0, distance=16, height=floor)
    speaking = uniform_filter1d((level > floor).astype(np.float64), 41) > 0.25
    nuclei = np.count_nonzero(f0[peaks] > 0)
    seconds = np.count_nonzero(speaking) * FRAME_SECONDS
    return float(np.clip(nuclei / max(seconds, 0.5) / REFERENCE_RATE, 0.5, 1.8))


def reachable(source: SourceVoice, wanted: VoiceParameters) -> VoiceParameters:
    """`wanted`, each number moved to where the vocoder can take this source without breaking it (SCALE_LIMITS)."""

    def limit(target: float, base: float, kind: str) -> float:
        low, high = SCALE_LIMITS[kind]
        return float(np.clip(target, low * base, high * base))

    return VoiceParameters(
        limit(wanted.f0_hz, source.f0_hz, "f0"),
        limit(wanted.formant_scale, source.formant_scale, "formant"),
        limit(wanted.rate, source.rate, "rate"),
        wanted.breathiness, wanted.tremor, wanted.f0_range,
    )  # fmt: skip


def synthesise(source: SourceVoice, voice: VoiceParameters, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A clip of the virtual speaker: float32 [seconds * 16000], RMS 0.07, peak <= 0.99.

    Starts at a seeded place of the recording; a recording that is too short is repeated.
    """
    frames = round(seconds / FRAME_SECONDS) + 1
    speed = voice.rate / source.rate
    total = len(source.f0)
    spare = max(total - int(frames * speed) - 2, 0)
    start = int(rng.integers(spare + 1)) if spare else int(rng.integers(total))
    index = (start + np.floor(np.arange(frames) * speed).astype(np.int64)) % total
    time = np.arange(frames) * FRAME_SECONDS
    swing = np.sin(2 * np.pi * (rng.uniform(4.5, 5.8) * time + rng.uniform()))
    f0 = _reshape_f0(source, voice, index, swing, rng)
    envelope = warp_envelope(source.log_envelope[index], voice.formant_scale / source.formant_scale)
    envelope += 2 * np.log(1 + TREMOR_OF_LOUDNESS * voice.tremor * swing)[:, None]  # the envelope is log power
    aperiodicity = _reshape_aperiodicity(source.band_aperiodicity[index], f0, voice.breathiness)
    world = _world()
    pcm = world.synthesize(f0, np.exp(envelope), aperiodicity, SAMPLE_RATE, FRAME_SECONDS * 1000)
    wanted = round(seconds * SAMPLE_RATE)
    pcm = np.pad(pcm, (0, max(wanted - len(pcm), 0)))[:wanted]
    pcm *= 0.07 / max(float(np.sqrt(np.mean(pcm**2))), 1e-6)
    return (pcm / max(1.0, float(np.abs(pcm).max()) / 0.99)).astype(np.float32)


def warp_envelope(log_envelope: np.ndarray, scale: float) -> np.ndarray:
    """Move every formant from f to f * scale: float64 [n, 513] from [n, 513]; the last bin fills what is uncovered."""
    position = np.minimum(np.arange(BINS) / scale, BINS - 1.0)
    low = np.minimum(position.astype(np.int64), BINS - 2)
    share = position - low
    values = log_envelope.astype(np.float32)
    warped = values[:, low] * (1 - share).astype(np.float32) + values[:, low + 1] * share.astype(np.float32)
    return np.ascontiguousarray(warped, dtype=np.float64)


def cached_source(speaker: Speaker, cache: Path) -> SourceVoice:
    """The settled analysis of a speaker's recording, from `cache` where it is there and belongs to the same bytes."""
    data = _read_bytes(speaker.path)
    path = _cache_path(data, cache)
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            return settle(_unpack(arrays), speaker.sex)
        except (OSError, ValueError, KeyError):  # a damaged cache file is made anew
            path.unlink()
    source = _analyse_file(speaker, data)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        np.savez(
            stream, f0=source.f0, log_envelope=source.log_envelope, band_aperiodicity=source.band_aperiodicity,
            measured=np.array([source.f0_hz, source.formant_scale, source.rate]),
        )  # fmt: skip
    temporary.replace(path)
    return settle(source, speaker.sex)


def settle(source: SourceVoice, sex: str) -> SourceVoice:
    """Weigh the measured formant scale and rate against the typical: halves of a recording agree with r = 0.7."""
    typical = TYPICAL_FORMANT_SCALE[sex]
    return replace(
        source,
        formant_scale=typical * (source.formant_scale / typical) ** FORMANT_TRUST,
        rate=source.rate**RATE_TRUST,
    )


def is_cached(speaker: Speaker, cache: Path) -> bool:
    """Whether the analysis of this recording is in `cache`."""
    return _cache_path(_read_bytes(speaker.path), cache).is_file()


def _cache_path(data: bytes, cache: Path) -> Path:
    return cache / (hashlib.sha256(f"{ANALYSIS_VERSION}:".encode() + data).hexdigest()[:24] + ".npz")


def _unpack(arrays: dict[str, np.ndarray]) -> SourceVoice:
    f0_hz, formant_scale, rate = (float(value) for value in arrays["measured"])
    return SourceVoice(arrays["f0"], arrays["log_envelope"], arrays["band_aperiodicity"], f0_hz, formant_scale, rate)


def _analyse_file(speaker: Speaker, data: bytes) -> SourceVoice:
    import soundfile
    import soxr

    try:
        pcm, rate = soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise CorpusInvalid(f"{speaker.path}: not readable as audio ({error}); replace it.") from error
    pcm = pcm.mean(axis=1)
    if rate != SAMPLE_RATE:
        pcm = soxr.resample(pcm, rate, SAMPLE_RATE)
    if len(pcm) < SAMPLE_RATE or not np.isfinite(pcm).all():
        raise CorpusInvalid(f"{speaker.path}: under one second or not finite; replace it or remove its line.")
    try:
        return analyse(pcm)
    except CorpusInvalid as error:
        raise CorpusInvalid(f"{speaker.path}: {error}") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusInvalid(f"{path}: not readable ({error.strerror}); check the file's rights.") from error


def _reshape_f0(
    source: SourceVoice, voice: VoiceParameters, index: np.ndarray, swing: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """F0 of the frames, moved to the wanted median and range, with tremor: float64 [frames], 0 where unvoiced."""
    f0 = source.f0[index].astype(np.float64)
    voiced = f0 > 0
    excursion = np.log(np.where(voiced, f0, source.f0_hz) / source.f0_hz)
    jitter = rng.standard_normal(len(f0))
    wobble = voice.tremor * (swing + 0.3 * jitter)
    shaped = voice.f0_hz * np.exp(voice.f0_range * excursion + wobble)
    return np.where(voiced, np.clip(shaped, 45.0, 600.0), 0.0)


def _reshape_aperiodicity(band_db: np.ndarray, f0: np.ndarray, breathiness: float) -> np.ndarray:
    """Share of noise per bin, float64 [n, 513], 0…1: WORLD's one coded band, then raised towards 1 by `breathiness`.

    The raise is 0.25 at 0 Hz and full from 4 kHz, as turbulence at an open glottis is a high-frequency noise. The power
    1.5 spreads what is heard evenly: noise is heard by its level in dB, so equal shares count less as they grow.
    """
    hertz = np.arange(BINS) * SAMPLE_RATE / FFT_SIZE
    decibel = np.where(
        hertz <= 3000.0,
        -60.0 + (band_db[:, None] + 60.0) * (hertz / 3000.0),
        band_db[:, None] * (1.0 - (hertz - 3000.0) / (SAMPLE_RATE / 2 - 3000.0)),
    )
    share = np.power(10.0, decibel / 20.0)
    raise_by = breathiness**1.5 * (0.25 + 0.75 * np.minimum(hertz / 4000.0, 1.0))
    share += raise_by * (1.0 - share)
    share[f0 <= 0] = 1.0
    return np.ascontiguousarray(np.clip(share, 0.001, 1.0))


def _level(log_envelope: np.ndarray) -> np.ndarray:
    """Frame level in dB between 100 Hz and 4 kHz, float64 [n]."""
    power = np.exp(log_envelope[:, 6:256].astype(np.float64)).mean(axis=1)
    return 10.0 * np.log10(np.maximum(power, 1e-16))


def _resonances(power: np.ndarray, ceiling_hz: float, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and bandwidths in Hz of the poles with positive angle, each [n, order]; 0 Hz stands for "no pole"."""
    correlation = np.fft.irfft(power, axis=1)[:, : order + 1]
    correlation[:, 0] *= 1.0001
    lags = np.abs(np.arange(order)[:, None] - np.arange(order))
    coefficients = np.linalg.solve(correlation[:, lags], -correlation[:, 1:, None])[..., 0]
    companion = np.zeros((len(power), order, order))
    companion[:, 0] = -coefficients
    companion[:, np.arange(1, order), np.arange(order - 1)] = 1.0
    poles = np.linalg.eigvals(companion)
    angle, radius = np.angle(poles), np.maximum(np.abs(poles), 1e-9)
    frequency = np.where(angle > 0.01, angle / np.pi * ceiling_hz, 0.0)
    return frequency, -np.log(radius) / np.pi * 2 * ceiling_hz


def _world() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its use of pkg_resources is deprecated
            import pyworld
    except ImportError as error:
        raise BackendMissing(f"no vocoder ({error}); install it with: pip install 's2f-edge[train]'") from error
    return pyworld
