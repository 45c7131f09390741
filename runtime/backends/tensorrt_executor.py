"""Whole portraits on the GPU: encoder, N steps and decoder as one CUDA graph over memory that is allocated once.

Per portrait: one copy in (speech, noise, options, side by side in pinned memory), one launch, one copy out, one wait.
The steps hand their latents on in device memory; nothing is allocated, and nothing returns to the host, in between. All
calls to CUDA and TensorRT come from one owner thread.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..bundle import STAGES, Bundle, Manifest, StepTable, TensorSpec
from ..cache import Cache
from ..engines import EngineSpec, Prepared, engine_tensors
from ..errors import NotPrepared
from ..executor import Clock, Executor, Image, Work, portrait
from ..noise import seeded_noise
from ..owner import Owner
from .cuda import ALIGNMENT, CaptureFailed, Cuda, graphs_missing
from .tensorrt import Engine, Runtime, package, place_here, prepared

logger = logging.getLogger(__name__)

Call = tuple[Engine, Mapping[str, int]]
Bytes = npt.NDArray[np.uint8]


class TensorRTExecutor(Executor):
    """The prepared engines of one bundle. See `Executor`."""

    prepared = True

    def __init__(
        self,
        bundle: Bundle,
        cache: Cache | None = None,
        *,
        record: Prepared | None = None,
        precision: str = "auto",
    ) -> None:
        """Open what `s2f prepare` made; `record`: these engines, instead of those it recorded, which must be of
        `precision`, if that is not "auto".

        Raises NotPrepared, BackendMissing, DeviceUnavailable, BackendFailed, DeviceOutOfMemory.
        """
        self._gpu = Gpu()
        self._owner = Owner("s2f-cuda", self._gpu.give_back)
        cache = Cache.default() if cache is None else cache
        try:
            self.precision = self._owner.call(self._gpu.open, bundle.manifest, cache, record, precision)
        except BaseException:
            self._owner.close()
            raise

    def paint(self, work: Work, clock: Clock) -> list[Image]:
        """See `Executor.paint`. Only the whole is measured: the graphs are one launch."""
        return self._owner.call(self._gpu.paint, work)

    def encode(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `Executor.encode`."""
        return self._owner.call(self._gpu.encode, pcm)

    def close(self) -> None:
        """Give the GPU's memory back and end the thread."""
        self._owner.close()


class Gpu:
    """All that lives on the GPU, for the owner's thread alone."""

    def __init__(self) -> None:
        self._lanes: dict[int, Lane] = {}
        self._cuda: Cuda | None = None

    def open(self, manifest: Manifest, cache: Cache, record: Prepared | None, precision: str) -> str:
        """Load the engines, allocate, and capture the program of the default steps; returns the engines' precision.

        See `TensorRTExecutor`.
        """
        module = package()
        place = place_here(module)
        if record is None:
            record = prepared(manifest, cache, place)
        if precision not in ("auto", record.precision):
            raise NotPrepared(
                f"The engines for the bundle {manifest.name} are in {record.precision}, not in {precision}. Run: "
                f"s2f-export engines BUNDLE --precision {precision}"
            )
        self._cuda = Cuda()
        runtime = Runtime(module, cache, manifest, place)
        engines = {spec: runtime.load(spec, record.options) for spec in record.engines()}
        size = max(engine.scratch for engine in engines.values())
        scratch = self._cuda.allocate(max(size, ALIGNMENT))
        for engine in engines.values():
            engine.use_scratch(scratch, size)
        opened = Opened(self._cuda, manifest, record, engines, _upload_rows(self._cuda, manifest))
        self._lanes.update((batch, Lane(opened, batch)) for batch in record.batches)
        self._lanes[1].program(manifest.table())  # the first portrait shall not wait for it
        return record.precision

    def paint(self, work: Work) -> list[Image]:
        """See `Executor.paint`."""
        images: list[Image] = []
        one_voice = len(work.voices) < len(work.seeds)
        last: Lane | None = None
        portions = list(_portions(len(work.seeds), list(self._lanes)))
        for number, (begin, size) in enumerate(portions):
            work.watch(number * work.steps, len(portions) * work.steps)
            lane, part = self._lanes[size], slice(begin, begin + size)
            voices = np.broadcast_to(work.voices, (size, *work.voices.shape[1:])) if one_voice else work.voices[part]
            if work.encoded:
                extent = Extent.KNOWN
                lane.put_condition(voices)
            else:
                extent = Extent.WHOLE if not one_voice else Extent.KNOWN if lane is last else Extent.KEEPING
                if extent is not Extent.KNOWN:
                    lane.put_speech(voices)
            images += lane.run(work.seeds[part], work, extent)
            last = lane
        work.watch(len(portions) * work.steps, len(portions) * work.steps)
        return images

    def encode(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `Executor.encode`."""
        return np.concatenate([self._lanes[1].encode(one[None]) for one in pcm])

    def give_back(self) -> None:
        """The owner's last work. Engines go before the context they live in."""
        self._lanes.clear()
        if self._cuda is not None:
            self._cuda.close()
            self._cuda = None


class Extent(enum.Enum):
    """How much of the way a program goes, so that one voice with several seeds is encoded once per batch size."""

    WHOLE = "from speech to image, as one engine where that is faster"
    KEEPING = "from speech to image in stages, which leaves the condition behind"
    KNOWN = "from the condition that was left behind to the image"


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a tensor lies in a block: offset and size in bytes."""

    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Opened:
    """What all batch sizes share. `rows`: address on the device of every step index."""

    device: Cuda
    manifest: Manifest
    record: Prepared
    engines: Mapping[EngineSpec, Engine]
    rows: Mapping[int, int]


class Lane:
    """The engines, buffers and captured graphs of one batch size."""

    def __init__(self, opened: Opened, batch: int) -> None:
        """Allocates everything this batch size will ever need."""
        device, manifest, record = opened.device, opened.manifest, opened.record
        self._device, self._manifest, self._record, self._batch = device, manifest, record, batch
        self._engines, self._rows = opened.engines, opened.rows
        inputs, outputs = engine_tensors(manifest, EngineSpec("pipeline", batch, 0, record.precision))
        self._slots, size = _block(inputs.values())
        self._source, self._input = device.pinned(size), device.allocate(size)
        image = outputs["image"]
        self._target, self._image = device.pinned(_bytes(image)), device.allocate(_bytes(image))
        self._image_shape = tuple(int(dim) for dim in image.shape)
        self._buffers = self._allocate_between()
        self._condition_shape = (manifest.condition.tokens, manifest.condition.width)
        self._condition = device.pinned(4 * batch * manifest.condition.tokens * manifest.condition.width)
        self._programs: dict[tuple[int, Extent], Callable[[], None]] = {}

    def put_speech(self, pcm: npt.NDArray[np.float32]) -> None:
        """The speech of the next run, float32 [batch, samples]; it goes to the device with the rest of that run."""
        self._put("pcm", pcm)

    def put_condition(self, condition: npt.NDArray[np.float32]) -> None:
        """The condition of the next run of Extent.KNOWN, float32 [batch, tokens, width], onto the device."""
        self._condition[:] = np.ascontiguousarray(condition).view(np.uint8).reshape(-1)
        self._device.upload(self._buffers["condition"], self._condition)

    def encode(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The condition float32 [batch, tokens, width] of pcm float32 [batch, samples]."""
        self._put("pcm", pcm)
        self._device.upload(self._input, self._source)
        self._engine("encoder", 0).enqueue(
            {"pcm": self._input + self._slots["pcm"].offset, "condition": self._buffers["condition"]},
            self._device.stream,
        )
        self._device.download(self._condition, self._buffers["condition"])
        self._device.synchronize()
        return np.array(self._condition.view(np.float32).reshape(self._batch, *self._condition_shape))

    def run(self, seeds: list[int], work: Work, extent: Extent) -> list[Image]:
        """`batch` portraits of the speech or condition put before."""
        program = self.program(work.table, extent)
        latent = self._manifest.latent
        shape = (latent.channels, latent.height, latent.width)
        self._put("noise", np.stack([seeded_noise(seed, shape) for seed in seeds]))
        for name in self._slots.keys() & work.options.keys():
            self._put(name, np.array([work.options[name]], np.float32))
        self._device.upload(self._input, self._source)
        program()
        self._device.download(self._target, self._image)
        self._device.synchronize()
        return [portrait(image) for image in self._target.reshape(self._image_shape)]

    def program(self, table: StepTable, extent: Extent = Extent.WHOLE) -> Callable[[], None]:
        """What enqueues a batch in so many steps: the launch of a captured graph, or the calls one by one."""
        key = (len(table.timesteps), extent)
        if key not in self._programs:
            self._programs[key] = _program(self._device, list(self._calls(table, extent)))
        return self._programs[key]

    def _calls(self, table: StepTable, extent: Extent) -> Iterator[Call]:
        """The engines to run and the addresses of their tensors, in order."""
        given = {name: self._input + slot.offset for name, slot in self._slots.items()}
        steps, options = len(table.timesteps), {k: v for k, v in given.items() if k not in ("pcm", "noise")}
        if extent is Extent.WHOLE and (self._batch, steps) in self._record.pipelines:
            yield self._engine("pipeline", steps), {**given, "image": self._image}
            return
        encoder, unet, decoder = (self._engine(stage, 0) for stage in STAGES)
        condition = self._buffers["condition"]
        if extent is not Extent.KNOWN:
            yield encoder, {"pcm": given["pcm"], "condition": condition}
        states = self._states(given["noise"], steps)
        for row, (before, after) in enumerate(pairwise(states), start=table.first_row):
            yield (
                unet,
                {
                    **before,
                    **{f"{name}_next": address for name, address in after.items()},
                    **options,
                    "condition": condition,
                    "step": self._rows[row],
                },
            )
        yield decoder, {"latent": states[-1]["latent"], "image": self._image}

    def _states(self, noise: int, steps: int) -> list[dict[str, int]]:
        """Where the latent (and the history) lie before each step and after the last: two places, in turn."""
        buffers, states = self._buffers, [{"latent": noise}]
        if self._manifest.history:
            states[0]["history"] = buffers["no_history"]
        for step in range(steps):
            states.append({name: buffers[f"{name}_{step % 2}"] for name in states[0]})
        return states

    def _allocate_between(self) -> dict[str, int]:
        """Device memory for what the stages hand on. `no_history` is zero and never written."""
        tensors = engine_tensors(self._manifest, EngineSpec("unet", self._batch, 0, self._record.precision))[0]
        names = [f"{name}_{k}" for name in ("latent", "history") if name in tensors for k in (0, 1)]
        buffers = {name: self._device.allocate(_bytes(tensors["latent"])) for name in names}
        buffers["condition"] = self._device.allocate(_bytes(tensors["condition"]))
        if self._manifest.history:
            buffers["no_history"] = _uploaded(self._device, np.zeros(_bytes(tensors["latent"]), np.uint8))
        return buffers

    def _engine(self, graph: str, steps: int) -> Engine:
        return self._engines[EngineSpec(graph, self._batch, steps, self._record.precision)]

    def _put(self, name: str, values: npt.NDArray[np.float32]) -> None:
        slot = self._slots[name]
        self._source[slot.offset : slot.offset + slot.size].view(np.float32)[:] = values.reshape(-1)


def _program(device: Cuda, calls: list[Call]) -> Callable[[], None]:
    """The calls as one CUDA graph, or one after the other, with the reason logged, where no graph can be had."""

    def enqueue() -> None:
        for engine, tensors in calls:
            engine.enqueue(tensors, device.stream)

    reason = graphs_missing()
    if not reason:
        try:
            enqueue()  # TensorRT may allocate and load kernels in its first execution, which a capture forbids
            device.synchronize()
            return device.capture(enqueue)
        except CaptureFailed as problem:
            reason = str(problem)
    logger.warning("no CUDA graph, the engines are enqueued one by one: %s", reason)
    return enqueue


def _portions(count: int, batches: list[int]) -> Iterator[tuple[int, int]]:
    """(begin, size) of portions that cover 0..count, always the largest size that fits; 1 is among `batches`."""
    begin = 0
    while begin < count:
        size = max(batch for batch in batches if batch <= count - begin)
        yield begin, size
        begin += size


def _upload_rows(device: Cuda, manifest: Manifest) -> dict[int, int]:
    """Every step index any table uses, int32 [1] each on the device: row → address."""
    rows = sorted(t.first_row + i for t in manifest.step_tables.values() for i in range(len(t.timesteps)))
    block = np.zeros((len(rows), ALIGNMENT // 4), np.int32)
    block[:, 0] = rows
    address = _uploaded(device, block.view(np.uint8).reshape(-1))
    return {row: address + index * ALIGNMENT for index, row in enumerate(rows)}


def _uploaded(device: Cuda, values: Bytes) -> int:
    """The address of a copy of `values` on the device."""
    source, address = device.pinned(values.size), device.allocate(values.size)
    source[:] = values
    device.upload(address, source)
    device.synchronize()
    return address


def _block(tensors: Iterable[TensorSpec]) -> tuple[dict[str, Slot], int]:
    """Tensors side by side, each at an address TensorRT takes: name → slot, and the size of it all."""
    slots, offset = {}, 0
    for tensor in tensors:
        slots[tensor.name] = Slot(offset, _bytes(tensor))
        offset += -(-_bytes(tensor) // ALIGNMENT) * ALIGNMENT
    return slots, offset


def _bytes(tensor: TensorSpec) -> int:
    size = np.dtype(tensor.dtype).itemsize
    for dim in tensor.shape:
        size *= int(dim)
    return size
