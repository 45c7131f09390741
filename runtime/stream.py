"""Speech as it arrives, portraits as they settle: what `Pipeline.stream` opens.

    push → mono, 16 kHz → gate → speech ┄┄┄ worker: windows → mean condition → portrait → poll

The rules:
- `push` checks, resamples and gates in the caller's thread and hands the speech over. It never draws and never waits
  for what draws. The end of what was pushed may be held back: under 20 ms by the gate, and at other rates than 16 kHz
  by the resampler, up to 40 ms at 44.1 and 48 kHz, 0.12 s at others from 8 kHz up and a second at 1 kHz.
- One worker thread per stream draws. It takes turns with other users of the pipeline, one window or one portrait at a
  time. So `poll` only looks whether there is a new portrait, and an audio callback may push while one is drawn.
- A portrait is due after 1, 2, 4, 8 … seconds of speech: each time there is as much news as there was knowledge. That
  of 4 s is drawn from the first 4 s exactly, whatever else has arrived and however it was cut up; a worker that is late
  draws only the latest one due. The noise is always that of the one seed, so the face settles instead of jumping.
- What is known of a voice is the mean of its conditions over windows of six seconds, weighted by the speech in each.
  The last window may be shorter: it is repeated, as `load_speech` does, and left out under half a second. The condition
  is linear in the speech embedding, so this is the condition of the mean embedding. Kept are a sum and the window that
  is not full yet, however long the stream. The estimate never forgets: open a new stream for a new speaker.
- Speech waits for the worker up to `max_backlog` seconds, besides the window. More is dropped as it arrives, so that
  what is kept stays the beginning, and counted in `dropped_seconds`. Sound that is no speech needs no room.
- What goes wrong in the worker is raised by `poll`, once; the speech is kept, and more speech tries again. When the
  pipeline is closed, `push` and `poll` raise Closed; after a fork they raise BackendFailed.
Sound is kept in memory only, until its window is encoded, and nothing of it is logged.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .audio import SIGNAL_SECONDS, fit_window, normalise_level
from .errors import AudioSilent, AudioTooShort, Cancelled, Closed
from .executor import Clock, Work
from .gate import Gate
from .intake import Intake
from .specs import SAMPLE_RATE, SAMPLES
from .watch import Watch

if TYPE_CHECKING:
    from types import TracebackType

    from .bundle import StepTable
    from .pipeline import Pipeline
    from .portrait import Portrait

Samples = npt.NDArray[np.float32]
Condition = npt.NDArray[np.float32]

FIRST = SAMPLE_RATE
"""Samples of speech behind the first portrait; behind each further one are twice as many."""

SHORTEST = round(SIGNAL_SECONDS * SAMPLE_RATE)
"""Samples of speech that are worth a window."""

_PATIENCE_SECONDS = 0.05
_CLOSED = "The stream is closed. Open a new one."


@dataclasses.dataclass(frozen=True)
class Style:
    """What all portraits of a stream have in common, as `Work` takes it."""

    seed: int
    table: StepTable
    options: Mapping[str, float]


class Stream:
    """A running sound and the portraits drawn of it; see the module. Any thread may call anything."""

    def __init__(self, pipeline: Pipeline, style: Style, intake: Intake, gate: Gate, backlog: int) -> None:
        """`Pipeline.stream` is the way here. `backlog`: samples of speech that may wait, at 16 kHz."""
        self._pipeline, self._intake, self._gate = pipeline, intake, gate
        self._pushing = threading.Lock()
        self._frames, self._finished = 0, False
        self._onset: int | None = None
        self._studio = _Studio(pipeline, style, SAMPLES + backlog)
        self._thread = threading.Thread(target=self._studio.run, name="s2f-stream", daemon=True)
        self._thread.start()
        # A stream that nobody holds any more ends without being waited for: garbage may be collected in any thread. At
        # the end of the process every worker is waited for, before Python takes itself apart under it.
        weakref.finalize(self, self._studio.end).atexit = False
        weakref.finalize(self._thread, self._studio.end, wait=True)

    def push(self, samples: npt.NDArray[Any]) -> None:
        """Take samples, int16 or floats of −1..1: [n], interleaved if there are several channels, or [n, channels].

        Any number of them. Raises InvalidArgument and AudioNonFinite, and then has taken none; Closed; BackendFailed
        where the VAD model fails and after a fork.
        """
        self._check_open()
        with self._pushing:
            if self._finished:
                raise Closed("The stream is finished and takes no more samples. Open a new one.")
            frames = self._intake.check(samples)
            self._frames += len(frames)
            for sound in self._intake.take(frames):
                self._hear(sound)

    def poll(self) -> Portrait | None:
        """The newest portrait, or None if that was given before. Never waits.

        Raises what went wrong in drawing, once (BackendFailed, …); Closed; after a fork BackendFailed.
        """
        self._check_open()
        return self._studio.collect()

    def finish(self, timeout: float | None = None) -> Portrait:
        """No more samples come: wait for the portrait of all the speech there was and return it.

        `timeout`: seconds, None for no limit. Raises AudioSilent without speech, AudioTooShort under half a second of
        it, TimedOut, InvalidArgument for the timeout, and what `poll` raises. May be called again. Not for a progress
        function of the same pipeline, which nothing else can use meanwhile.
        """
        self._check_open()
        watch = Watch(timeout=timeout)
        with self._pushing:
            if not self._finished:
                self._finished = True
                self._hear(self._intake.rest())
                self._studio.add(self._gate.rest(), self._gate.position)
        return self._studio.final(watch)

    def close(self) -> None:
        """End what is being drawn, within one step, and let everything go. Closing twice is harmless."""
        self._studio.end(wait=self._thread is not threading.current_thread())

    @property
    def heard_seconds(self) -> float:
        """Seconds of sound pushed."""
        return self._frames / self._intake.rate

    @property
    def speech_seconds(self) -> float:
        """Seconds of speech found in it and kept."""
        return self._studio.total / SAMPLE_RATE

    @property
    def dropped_seconds(self) -> float:
        """Seconds of speech dropped because the backlog was full."""
        return self._studio.dropped / SAMPLE_RATE

    @property
    def portrait_seconds(self) -> float:
        """Seconds of speech behind the portrait that `poll` or `finish` gave last; 0 before."""
        return self._studio.given / SAMPLE_RATE

    @property
    def first_portrait_seconds(self) -> float | None:
        """Seconds of sound from the beginning of speech until there was enough for the first portrait; None before."""
        enough = self._studio.enough
        return None if enough is None or self._onset is None else (enough - self._onset) / SAMPLE_RATE

    @property
    def first_portrait_wall_seconds(self) -> float | None:
        """Seconds from the push that completed that speech until the first portrait could be polled; None before."""
        return self._studio.first_took

    def __enter__(self) -> Stream:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        self._pipeline._check_open()
        self._studio.check_open()

    def _hear(self, sound: Samples) -> None:
        for speech in self._gate.take(sound):
            if self._onset is None:
                self._onset = self._gate.position - speech.size
            self._studio.add(speech, self._gate.position)


class Estimate:
    """What is known of a voice: the mean of its conditions, weighted by the samples of speech behind each."""

    def __init__(self) -> None:
        self._sum: npt.NDArray[np.float64] | float = 0.0
        self.samples = 0

    def add(self, condition: Condition, samples: int) -> None:
        """Keep the condition, float32 [tokens, width], of so many samples."""
        self._sum = self._sum + condition.astype(np.float64) * samples
        self.samples += samples

    def mean(self, condition: Condition | None = None, samples: int = 0) -> Condition:
        """The condition of all that was added and of this one beside it, float32 [tokens, width]."""
        more = 0.0 if condition is None else condition.astype(np.float64) * samples
        return np.asarray((self._sum + more) / (self.samples + samples), np.float32)


@dataclasses.dataclass(frozen=True)
class _Job:
    """Speech, float32 [n], after what the estimate knows. `due`: samples behind the portrait to draw with it; 0: it is
    a full window for the estimate.
    """

    speech: Samples
    due: int


class _Attention(Watch):
    """Ends what the worker does when the stream closes, also while it waits for its turn."""

    def __init__(self, is_closing: Callable[[], bool]) -> None:
        super().__init__(lambda *_: is_closing())
        self._is_closing = is_closing

    @contextmanager
    def turn(self, lock: threading.Lock) -> Iterator[None]:
        """See `Watch.turn`. Raises Cancelled."""
        while not lock.acquire(timeout=_PATIENCE_SECONDS):
            if self._is_closing():
                raise Cancelled(_CLOSED)
        try:
            yield
        finally:
            lock.release()


class _Studio:
    """What the threads of a stream share: speech on its way to the worker, portraits on their way back.

    The lock of `_changed` is held while something is copied, never while somebody waits for the pipeline.
    """

    def __init__(self, pipeline: Pipeline, style: Style, capacity: int) -> None:
        self._pipeline, self._style, self._process = pipeline, style, os.getpid()
        self._changed = threading.Condition()
        self._closing, self._ended = False, threading.Event()
        self._speech = np.empty(capacity, np.float32)  # what follows the samples that the estimate knows
        self._estimate = Estimate()
        self._portrait: Portrait | None = None
        self._drawn, self._final = 0, False
        self._error: BaseException | None = None  # what `poll` tells
        self._failure: BaseException | None = None  # the same, for `finish`
        self._failed_at = -1
        self._asked = 0.0
        self.total = self.dropped = self.given = 0
        self.enough: int | None = None
        self.first_took: float | None = None

    def check_open(self) -> None:
        """Raises Closed."""
        if self._closing:
            raise Closed(_CLOSED)

    def add(self, speech: Samples, position: int) -> None:
        """Keep speech that follows what was added, as far as there is room. `position`: where in the sound it ends."""
        with self._changed:
            self.check_open()
            held = self.total - self._estimate.samples
            kept = speech[: self._speech.size - held]
            self._speech[held : held + kept.size] = kept
            self.total += kept.size
            self.dropped += speech.size - kept.size
            if self.enough is None and self.total >= FIRST:
                self.enough, self._asked = position, time.perf_counter()
            if self._next() is not None:
                self._changed.notify_all()

    def collect(self) -> Portrait | None:
        """See `Stream.poll`."""
        with self._changed:
            self.check_open()
            self._raise_error()
            if self.given == self._drawn:
                return None
            self.given = self._drawn
            return self._portrait

    def final(self, watch: Watch) -> Portrait:
        """See `Stream.finish`."""
        with self._changed:
            if self.total < SHORTEST:
                raise _too_little(self.total)
            self._raise_error()
            self._final, self._failed_at, self._failure = True, -1, None
            self._changed.notify_all()
            while self._portrait is None or self._drawn < self.total:
                self.check_open()
                if (
                    self._failure is not None
                ):  # told here too where `poll` has told it: there is nothing more to wait for
                    self._error = None
                    raise self._failure
                watch(0, 1)
                self._changed.wait(_PATIENCE_SECONDS)
            self.given = self._drawn
            return self._portrait

    def end(self, *, wait: bool = False) -> None:
        """Tell the worker to end, from any thread and more than once, and `wait` for it."""
        if os.getpid() != self._process:  # the worker stayed behind, and maybe a held lock
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if wait:
            self._ended.wait()

    def run(self) -> None:
        """The worker."""
        try:
            while not self._closing:
                try:
                    self._do_next()
                except BaseException as error:  # noqa: BLE001 - it belongs to whoever polls
                    self._fail(error)
            # An error holds its frames, and through them this thread, whose end lets the stream go.
            self._speech, self._portrait = np.empty(0, np.float32), None
            self._error = self._failure = None
        finally:
            self._ended.set()

    def _do_next(self) -> None:
        """Wait for a job and do it; nothing if the stream closes. Raises what the pipeline raises."""
        with self._changed:
            while (job := self._next()) is None:
                if self._closing:
                    return
                self._changed.wait()
            job = _Job(job.speech.copy(), job.due)
        self._do(job)

    def _next(self) -> _Job | None:
        """What is to be done, its speech not copied; None while there is nothing, or a failure has not been told."""
        if self._closing or self._error is not None or self.total <= self._failed_at:
            return None
        due, known = self._due(), self._estimate.samples
        if 0 < due < known + SAMPLES:
            return _Job(self._speech[: due - known], due)
        return _Job(self._speech[:SAMPLES], 0) if self.total >= known + SAMPLES else None

    def _due(self) -> int:
        """Samples behind the latest portrait that is due; 0 if that is drawn."""
        latest = FIRST << ((self.total // FIRST).bit_length() - 1) if self.total >= FIRST else 0
        latest = self.total if self._final else latest
        return latest if latest > self._drawn else 0

    def _do(self, job: _Job) -> None:
        """Encode the job's speech, then keep that or draw. Raises what the pipeline raises."""
        clock, watch = Clock(), _Attention(lambda: self._closing)
        condition = None
        if job.speech.size >= SHORTEST:
            with clock.measure("audio"):
                window = normalise_level(fit_window(job.speech, SAMPLES))[None]
            with clock.measure("graphs"):
                condition = self._pipeline._encode(window, watch)[0]
        if job.due:
            known = self._estimate.mean(condition, 0 if condition is None else job.speech.size)
            style = self._style
            work = Work(known[None], [style.seed], style.table, style.options, encoded=True, watch=watch)
            self._show(self._pipeline._draw(work, clock)[0], job.due)
        elif condition is not None:
            with self._changed:
                self._estimate.add(condition, SAMPLES)
                held = self.total - self._estimate.samples
                self._speech[:held] = self._speech[SAMPLES : SAMPLES + held]

    def _show(self, portrait: Portrait, due: int) -> None:
        with self._changed:
            self._portrait, self._drawn = portrait, due
            if self.first_took is None:
                self.first_took = time.perf_counter() - self._asked
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        traceback.clear_frames(error.__traceback__)  # whoever keeps an error must not keep what was worked on
        with self._changed:
            self._error = self._failure = error
            self._failed_at = self.total
            self._changed.notify_all()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


def _too_little(samples: int) -> AudioSilent | AudioTooShort:
    if samples == 0:
        return AudioSilent("No speech was heard in the stream. Check the microphone, its level and the sample rate.")
    heard = f"{samples / SAMPLE_RATE:.2f} s of speech"
    return AudioTooShort(f"The stream held {heard}, at least {SIGNAL_SECONDS:.2f} s are needed. Record a longer clip.")
