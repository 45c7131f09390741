"""One small family of errors with stable integer codes.

Every failure the package foresees is an `S2FError`. Its `code` is part of the public contract: it is the exit status of
the command line and the return value of the C functions, so a code is never reused and never changes its meaning. A
message says what happened, where, and what to do next.

Codes are grouped by tens: 1x arguments, 2x audio, 3x bundle, 4x backend, 5x output, 6x training inputs, 7x export,
8x lifetime, 9x measurements.
"""

# ruff: noqa: N818 - the names are public and say what is wrong; the module says that they are errors

from __future__ import annotations

from typing import ClassVar


class S2FError(Exception):
    """Base of the family; raised only through its subclasses. `code` is the stable number of the failure (1..125)."""

    code: ClassVar[int] = 1


class InvalidArgument(S2FError):
    """A caller's option is of the wrong type or outside its range (seed, guidance, window, length of a list)."""

    code = 10


class StepsUnavailable(S2FError):
    """The number of steps asked for has no step table in this bundle."""

    code = 11


class BufferTooSmall(S2FError):
    """A buffer given to a C function cannot hold the result; the bytes needed are told beside this error."""

    code = 13


class AudioNotFound(S2FError):
    """The speech path names nothing that exists."""

    code = 20


class AudioUnreadable(S2FError):
    """The speech exists but cannot be read: a directory, an empty, damaged or non-audio file, an odd array or rate."""

    code = 21


class AudioSilent(S2FError):
    """The speech holds samples, but the window the model would see is silence."""

    code = 22


class AudioTooShort(S2FError):
    """The speech holds less than half a second of signal."""

    code = 23


class AudioNonFinite(S2FError):
    """The speech holds NaN or infinite samples."""

    code = 24


class BundleNotFound(S2FError):
    """The bundle path is not a folder, or it holds no manifest."""

    code = 30


class BundleInvalid(S2FError):
    """The manifest or a stage file breaks the contract: syntax, unknown key, shape, missing file, external data."""

    code = 31


class BundleTampered(S2FError):
    """A file's size or sha256 differs from what the manifest says."""

    code = 32


class BundleVersion(S2FError):
    """The bundle was written under a schema version this release does not read."""

    code = 33


class BackendMissing(S2FError):
    """A package this needs is not installed: a backend (ONNX Runtime, TensorRT), soundfile, soxr."""

    code = 40


class DeviceUnavailable(S2FError):
    """The device asked for is unknown or not usable here; the runtime never falls back silently."""

    code = 41


class BackendFailed(S2FError):
    """The backend refused a graph, failed while running it, or answered with something outside the contract."""

    code = 42


class NotPrepared(S2FError):
    """The device runs what `s2f prepare` made for it, and for this bundle and machine nothing valid is there."""

    code = 43


class DeviceOutOfMemory(S2FError):
    """The device has not enough memory to open the graphs, to run them or to prepare them."""

    code = 44


class OutputUnwritable(S2FError):
    """The portrait, report or cache entry cannot be written at the path given."""

    code = 50


class ConfigInvalid(S2FError):
    """A training configuration is missing, malformed or inconsistent."""

    code = 60


class CorpusInvalid(S2FError):
    """A corpus or one of its sources is missing, malformed or inconsistent."""

    code = 61


class CheckpointInvalid(S2FError):
    """A checkpoint is missing, damaged or does not belong to the configuration."""

    code = 62


class TrainingDiverged(S2FError):
    """A gradient or a weight became infinite or not a number; nothing of that step was kept."""

    code = 63


class ParityFailed(S2FError):
    """An exported graph does not compute what the trained model computes."""

    code = 70


class GateMissed(S2FError):
    """A quantised variant changes the portraits by more than the gate of calibration allows."""

    code = 71


class Closed(S2FError):
    """A pipeline or stream was used after it had been closed."""

    code = 80


class Cancelled(S2FError):
    """The caller's progress function asked for the end of the call."""

    code = 81


class TimedOut(S2FError):
    """The call did not end within the time the caller gave it."""

    code = 82


class Slower(S2FError):
    """A measurement takes longer than the one it is held against, by more than was allowed and without doubt."""

    code = 90


class NotJudged(S2FError):
    """A measurement was disturbed too much to be held against another."""

    code = 91


ALL_ERRORS: tuple[type[S2FError], ...] = (
    InvalidArgument,
    StepsUnavailable,
    BufferTooSmall,
    AudioNotFound,
    AudioUnreadable,
    AudioSilent,
    AudioTooShort,
    AudioNonFinite,
    BundleNotFound,
    BundleInvalid,
    BundleTampered,
    BundleVersion,
    BackendMissing,
    DeviceUnavailable,
    BackendFailed,
    NotPrepared,
    DeviceOutOfMemory,
    OutputUnwritable,
    ConfigInvalid,
    CorpusInvalid,
    CheckpointInvalid,
    TrainingDiverged,
    ParityFailed,
    GateMissed,
    Closed,
    Cancelled,
    TimedOut,
    Slower,
    NotJudged,
)
"""Every concrete error, by rising code."""

CODES: dict[str, int] = {error.__name__: error.code for error in ALL_ERRORS}
"""Name to code, for whatever mirrors the family (exit statuses, the C header)."""
