"""The main path: speech → window → executor (encoder → seeded noise → N steps → decoder) → portrait.

All arithmetic is in the graphs of the bundle; the host moves arrays, draws noise and keeps time.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from .arguments import integer, is_integer, seconds, seeds, within
from .audio import HIGHEST_RATE, LOWEST_RATE, Speech, load_speech
from .backends import Settings, open_executor, select, settle
from .bundle import Bundle, Manifest, StepTable, read_bundle, read_manifest
from .errors import BackendFailed, BundleNotFound, Closed, InvalidArgument
from .executor import Clock, Executor, Work
from .gate import Gate, detector
from .intake import MAX_CHANNELS, Intake
from .machine import usable_cores
from .noise import MAX_SEED
from .portrait import Portrait
from .precision import check, check_known, variant_for
from .specs import SAMPLE_RATE
from .stream import Stream, Style
from .watch import Progress, Watch, ending

if TYPE_CHECKING:
    from types import TracebackType

MAX_THREADS = 256
MAX_BACKLOG = 600
END_SECONDS = 3.0


def load(
    bundle: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
) -> Pipeline:
    """Read, verify and open a bundle; None is the demo bundle that ships with the package.

    `device`: "cpu", "openvino", "cuda", "tensorrt" (after `s2f prepare`) or "auto": the best that works, `s2f doctor`
    tells; openvino is the best only where `s2f prepare` has measured it here.
    `threads`: CPU threads per graph; None takes the physical cores this process may use; give 1 on a machine that is
    busy with other things. `precision`: "fp32", "bf16" (openvino), "fp16" (cuda, tensorrt), "int8" or "auto": eight
    bits where the bundle has a variant that passed its gate and the processor is made for it (VNNI), on a GPU what was
    prepared. Raises the BundleXxx errors, BackendMissing, DeviceUnavailable, NotPrepared, BackendFailed,
    DeviceOutOfMemory, InvalidArgument.
    """
    folder = shipped_bundle() if bundle is None else bundle
    settings = settings_for(read_manifest(folder)[0], device, threads, precision)
    return Pipeline(read_for(folder, settings), settings)


def settings_for(
    manifest: Manifest, device: str = "auto", threads: int | None = None, precision: str = "auto"
) -> Settings:
    """What `load` makes of its options. Raises InvalidArgument, BackendMissing, DeviceUnavailable, BundleInvalid."""
    count = usable_cores() if threads is None else integer("threads", threads, 1, MAX_THREADS)
    check_known(precision)
    chosen = select(device, manifest, precision)
    check(chosen, precision, manifest)
    return Settings(chosen, count, settle(chosen, precision, manifest))


def read_for(path: str | os.PathLike[str], settings: Settings) -> Bundle:
    """A verified bundle with the graphs that these settings open. Raises the BundleXxx errors."""
    return read_bundle(path, variant_for(settings.device, settings.precision))


def shipped_bundle() -> Path:
    """The folder of the demo bundle inside the package. Raises BundleNotFound if the package has none."""
    folder = Path(__file__).parent / "bundles" / "demo"
    if not folder.is_dir():
        raise BundleNotFound("This installation ships no demo bundle. Give the folder of a bundle made by s2f-export.")
    return folder


class Pipeline:
    """A loaded bundle on one device. Threads may share it: calls wait for each other. Close it, or use it in `with`."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        """Open the graphs of a verified bundle; `load` is the usual way here. The bytes are not kept.

        Raises InvalidArgument where the bundle was not read for these settings (`read_for`).
        """
        wanted = variant_for(settings.device, settings.precision)
        if settings.precision != "auto" and bundle.variant != wanted:
            own = "the bundle's own graphs"
            raise InvalidArgument(
                f"{settings.precision} on {settings.device} draws with {wanted or own}, but the bundle was read with "
                f"{bundle.variant or own}. Read it with read_for."
            )
        self.manifest: Manifest = bundle.manifest
        self.identity: str = bundle.identity
        self.device: str = settings.device
        self.threads: int = settings.threads
        self.variant: str | None = bundle.variant
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._holder = 0  # the thread that holds it
        self._executor: Executor | None = open_executor(bundle, settings)
        self.precision: str = self._executor.precision
        self.prepared: bool = self._executor.prepared
        _live.add(self)

    @overload
    def generate(
        self,
        speech: Speech,
        *,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        prior_weight: float | None = None,
        window: str = "start",
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Portrait: ...
    @overload
    def generate(
        self,
        speech: Speech,
        *,
        steps: int | None = None,
        seed: Sequence[int],
        guidance: float | None = None,
        prior_weight: float | None = None,
        window: str = "start",
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> list[Portrait]: ...
    @overload
    def generate(
        self,
        speech: list[Any],
        *,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        guidance: float | None = None,
        prior_weight: float | None = None,
        window: str = "start",
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> list[Portrait]: ...
    def generate(
        self,
        speech: Speech | list[Any],
        *,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        guidance: float | None = None,
        prior_weight: float | None = None,
        window: str = "start",
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Portrait | list[Portrait]:
        """Draw a portrait for a speech, or a list of portraits for a list of speeches, of seeds, or of both.

        `speech`: a path, the bytes of a file or (array, rate); see `runtime.audio`. `seed`: 0..2**63 − 1; the same call
        gives the same bytes on one machine, until it is prepared anew. One speech with several seeds is encoded once; a
        list of speeches with one seed uses it for each; two lists are paired and must be equally long. `steps`: one of
        the bundle's step tables; `guidance` (how much the voice counts) and `prior_weight` (how much the average face
        does): within the bundle's range, which may be a single value; None takes the bundle's default. `window`:
        "start", "centre", "loudest".

        `progress`: called with (steps done, steps in all) before the first step and after each; a true answer cancels.
        A device that draws whole portraits in one launch tells of those only. `timeout`: seconds for the whole call,
        waiting for others included; looked at when the speech has been read, and between two steps.

        If one speech of a list is bad the call fails as a whole. Raises the AudioXxx errors, InvalidArgument,
        StepsUnavailable, BackendFailed, DeviceOutOfMemory, Cancelled, TimedOut, Closed.
        """
        self._check_open()
        clock, watch = Clock(), Watch(progress, timeout)
        speeches = list(speech) if isinstance(speech, list) else [speech]
        each = seeds(seed, len(speeches))
        steps, table, chosen = self._options(steps, guidance, prior_weight)

        with clock.measure("audio"):
            pcm = np.stack([load_speech(one, window=window) for one in speeches])
        portraits = self._draw(Work(pcm, each, table, chosen, watch=watch), clock)
        return portraits if isinstance(speech, list) or not is_integer(seed) else portraits[0]

    def stream(
        self,
        sample_rate: int,
        channels: int = 1,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        prior_weight: float | None = None,
        vad: str | os.PathLike[str] = "energy",
        max_backlog: float = 30.0,
    ) -> Stream:
        """Open a stream: `push` samples as they arrive, `poll` for portraits, the first after a second of speech.

        See `runtime.stream` for its rules. `sample_rate`: 1000..384000 Hz; `channels`: 1..64, mixed down. `seed`,
        `steps`, `guidance`, `prior_weight`: of every portrait, as for `generate`. `vad`: what tells speech from other
        sound: "energy", or the path of silero's ONNX model (`runtime.gate`). `max_backlog`: 1..600, seconds of speech
        that may wait while something else is drawn. Raises InvalidArgument, StepsUnavailable, BackendMissing,
        BackendFailed, Closed.
        """
        self._check_open()
        rate = integer("sample_rate", sample_rate, LOWEST_RATE, HIGHEST_RATE)
        intake = Intake(rate, integer("channels", channels, 1, MAX_CHANNELS))
        _, table, chosen = self._options(steps, guidance, prior_weight)
        style = Style(integer("seed", seed, 0, MAX_SEED), table, chosen)
        backlog = round(seconds("max_backlog", max_backlog, 1, MAX_BACKLOG) * SAMPLE_RATE)
        return Stream(self, style, intake, Gate(detector(vad)), backlog)

    def close(self) -> None:
        """Give memory and threads back, after a call in progress. Closing twice is harmless."""
        if os.getpid() != self._process:
            return
        with self._lock:
            executor, self._executor = self._executor, None
            if executor is not None:
                executor.close()

    def __enter__(self) -> Pipeline:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self, work: Work, clock: Clock) -> list[Portrait]:
        """The portraits of a work, when it is its turn; `clock` has measured what was done before it."""
        with self._turn(work.watch) as executor, clock.measure("graphs"):
            images = executor.paint(work, clock)
        guidance, prior, timings = work.options["guidance"], work.options["prior_weight"], clock.timings()
        return [
            Portrait(image, seed, work.steps, guidance, prior, timings, self.manifest.name, self.identity)
            for image, seed in zip(images, work.seeds, strict=True)
        ]

    def _encode(self, pcm: npt.NDArray[np.float32], watch: Watch) -> npt.NDArray[np.float32]:
        """The conditions of pcm, when it is their turn; see `Executor.encode`."""
        with self._turn(watch) as executor:
            return executor.encode(pcm)

    @contextmanager
    def _turn(self, watch: Watch) -> Iterator[Executor]:
        """The executor, for this thread alone. Raises Closed, and what `Watch.turn` raises."""
        with watch.turn(self._lock):
            self._holder = threading.get_ident()
            try:
                yield self._check_open()
            finally:
                self._holder = 0

    def _options(
        self, steps: int | None, guidance: float | None, prior_weight: float | None
    ) -> tuple[int, StepTable, dict[str, float]]:
        """Steps, their table, and the options by name, checked. Raises InvalidArgument, StepsUnavailable."""
        manifest = self.manifest
        count = manifest.default_steps if steps is None else integer("steps", steps, 1, None)
        scale, prior = manifest.guidance, manifest.prior
        chosen = {
            "guidance": within("guidance", guidance, scale.default, (scale.min, scale.max), manifest.name),
            "prior_weight": within("prior_weight", prior_weight, prior.weight, (prior.min, prior.max), manifest.name),
        }
        return count, manifest.table(count), chosen

    def _check_open(self) -> Executor:
        if os.getpid() != self._process:  # its threads, the GPU's memory and maybe a held lock stayed behind
            raise BackendFailed(
                "The pipeline was loaded before this process was forked off. Load the bundle in this process."
            )
        if self._executor is None:
            raise Closed("The pipeline is closed. Load the bundle again.")
        if ending.is_set():
            raise Closed("The process is ending: nothing can be drawn any more.")
        return self._executor


_default: tuple[tuple[object, ...], Pipeline] | None = None
_default_lock = threading.Lock()
_live: weakref.WeakSet[Pipeline] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """In a forked child: what was loaded before belongs to the parent. It must not be used, nor be taken down: its
    threads and its GPU do not exist here, and destroying it crashes, also at the end of the process. So it is kept for
    ever, at the price of memory that the two processes share anyway.
    """
    global _default, _default_lock
    import ctypes

    for pipeline in list(_live):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipeline._executor))
    _default, _default_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)


def give_up(thread: int = 0) -> None:
    """The end of the process: nothing begins any more, what is drawn ends at its next step and is waited for, 3 seconds
    at most. Else a thread that comes back from a backend finds no Python any more, and takes the process down.

    `thread`: one that waits for this end itself (`threading.get_ident`), so that nobody waits for what it draws.
    """
    if ending.is_set():
        return
    ending.set()
    until = time.monotonic() + END_SECONDS
    for pipeline in list(_live):
        foreign = pipeline._process != os.getpid() or (thread and pipeline._holder == thread)
        if not foreign and pipeline._lock.acquire(timeout=max(0.0, until - time.monotonic())):
            pipeline._lock.release()


atexit.register(give_up)


def generate(
    speech: Speech,
    *,
    bundle: str | os.PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    steps: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    prior_weight: float | None = None,
    window: str = "start",
) -> Portrait:
    """Load a bundle and draw one portrait; see `load` and `Pipeline.generate`.

    The pipeline of the last call stays loaded and is used again while bundle, device, threads and precision are the
    same; it is the only thing this package keeps. Use `load` to decide yourself how long it lives.
    """
    global _default  # noqa: PLW0603 - the one cache, documented above
    key = (None if bundle is None else str(Path(bundle).absolute()), device, threads, precision)
    with _default_lock:
        if _default is None or _default[0] != key:
            _default = (
                None  # two pipelines at once would double the memory; one in use elsewhere lives on until its call ends
            )
            _default = (key, load(bundle, device=device, threads=threads, precision=precision))
        pipeline = _default[1]
    return pipeline.generate(
        speech, steps=steps, seed=seed, guidance=guidance, prior_weight=prior_weight, window=window
    )
