"""ONNX Runtime on the CPU or on CUDA.

Threads and spinning are set, never left to the library. Each of the three sessions has its own pool of `threads`
threads, one works at a time, and a worker without work polls for `SPIN_MICROSECONDS` and then sleeps, at the latest
when its call returns. Four steps end to end in ms, graphs with random weights, two cores (quiet / with one busy
neighbour / CPU time burnt after the call): as here 47 / 100 / 0; no polling 49 / 93 / 0; polling until the call returns
47 / 176 / 0; the library's default 109 / 265 / 45. Its process-wide pool reaches 47 / 175 / 37, but must be made before
the host's first session: not for a library to decide. Polling for less was slower on
a quiet machine without gaining beside neighbours, polling for longer slower beside neighbours.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from ..bundle import TensorSpec
from ..cache import Cache, Refused
from ..errors import BackendFailed, BackendMissing, DeviceOutOfMemory, DeviceUnavailable, S2FError
from . import ort_kept
from .base import Device, Kept, Session, Settings, Tensor, lacks_memory
from .libraries import missing

logger = logging.getLogger(__name__)

NAME = "onnxruntime"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
MEMORIES = {"cuda": "cuda"}
"""Where the tensors of a device lie whose memory is not the host's, in ONNX Runtime's words. On the CPU plain `run`
moves a few kilobytes per step; bound, preallocated values were measured within 1 % of it."""

EXTRAS = {"cpu": "cpu", "cuda": "gpu"}

SPIN_MICROSECONDS = 20
"""How long an idle worker polls before it sleeps: enough to bridge the gaps between operators, too short to hurt."""

_SPIN_LIMIT_SINCE = (1, 27)
"""The first release known to obey the limit. Older ones poll for milliseconds, so there no worker polls at all."""

_WEIGHTS_FILE = "session.optimized_model_external_initializers_file_name"
_WEIGHTS_LEAST = "session.optimized_model_external_initializers_min_size_in_bytes"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}
# HEURISTIC: cuDNN's search by timing may pick another algorithm, so other bytes, in each process.
_OPTIONS: dict[str, dict[str, str]] = {"cuda": {"cudnn_conv_algo_search": "HEURISTIC"}}
# One Neg node, float32 [1], opset 17: enough to learn whether a provider starts.
PROBE = bytes.fromhex(
    "08083a320a0b0a017812017922034e65671201705a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a001011"
)


class OrtSession(Session):
    """One graph in one InferenceSession."""

    backend: ClassVar[str] = NAME

    def _open(self, data: bytes, settings: Settings) -> None:
        what = f"the {self.stage} graph"
        kept = self._kept(settings, what)
        self.prepared = kept is not None
        self._session = kept or open_session(data, settings, what)
        self._memory = MEMORIES.get(settings.device)

    def _kept(self, settings: Settings, what: str) -> Any:
        """The session of the graph that `s2f prepare` has kept; None where none is, or, with a warning, none to use."""
        if settings.device != "cpu" or not self.source:
            return None
        try:
            found = ort_kept.read(Cache.default(), self.source, str(package("cpu").__version__))
            return found and open_session(found.graph, settings, what, weights=found.weights)
        except (Refused, BackendFailed) as reason:
            logger.warning("the graph is optimised again: %s", reason)
            return None

    def _specs(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        return [_spec(node) for node in self._session.get_inputs()], [_spec(n) for n in self._session.get_outputs()]

    def _run(self, feeds: dict[str, Tensor], keep: bool) -> Sequence[Tensor]:
        with translated(f"ONNX Runtime failed in the {self.stage} graph"):
            if self._memory is not None:
                return self._run_bound(feeds, keep)
            results: Sequence[Tensor] = self._session.run(list(self.outputs), feeds)
            return results

    def _run_bound(self, feeds: dict[str, Tensor], keep: bool) -> Sequence[Tensor]:
        """With inputs and outputs bound: what is kept stays in the device's memory, out of the provider's arena."""
        binding = self._session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, Kept):
                binding.bind_ortvalue_input(name, value.value)
            else:
                binding.bind_cpu_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, self._memory if keep else "cpu")
        self._session.run_with_iobinding(binding)
        values = binding.get_outputs()
        if not keep:
            return [value.numpy() for value in values]
        return [
            Kept(value, spec.dtype, tuple(value.shape()))
            for value, spec in zip(values, self.outputs.values(), strict=True)
        ]

    def _close(self) -> None:
        self._session = None


def require(device: str) -> None:
    """Raise BackendMissing or DeviceUnavailable unless the package here has the provider of `device`. Cheap."""
    ort = package(device)
    provider = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise DeviceUnavailable(
            f"The device {device!r} needs ONNX Runtime's {provider}, which the installed onnxruntime {ort.__version__} "
            f"does not have. Run: pip uninstall -y onnxruntime onnxruntime-gpu && {_install(device)}"
        )


def can_have_cuda() -> bool:
    """False where the files of the package say that it has no CUDA provider, which is a library of its own. Imports
    nothing, and a process that draws with OpenVINO holds one library.
    """
    if NAME in sys.modules:
        return True
    spec = importlib.util.find_spec(NAME)
    if spec is None or not spec.origin:
        return spec is not None
    names = {path.name for path in (Path(spec.origin).parent / "capi").glob("*onnxruntime_providers_*")}
    # Wheels have the first beside the second; where it lies elsewhere, so may the second.
    known = {"libonnxruntime_providers_shared.so", "onnxruntime_providers_shared.dll"} & names
    return not known or any("providers_cuda." in name for name in names)


def probe(device: str) -> Device:
    """Whether a graph opens on `device` here; never raises for what is missing."""
    try:
        require(device)
        open_session(PROBE, Settings(device, 1), "a test graph")
    except S2FError as error:
        reason, _, cure = str(error).partition(" Run: ")
        logger.info("device %s: %s", device, error)
        return Device(device, NAME, False, reason, cure or "see the reason")
    return Device(device, NAME, True)


def version() -> str | None:
    """Version of the installed ONNX Runtime; None where there is none that works."""
    try:
        return str(package("cpu").__version__)
    except BackendMissing:
        return None


def keep(data: bytes, source: str, cache: Cache, what: str) -> int:
    """Put a graph into the cache as it is optimised for the CPU here; returns its bytes. `source`: its sha256.

    Raises BackendFailed, DeviceOutOfMemory, BackendMissing, OutputUnwritable.
    """
    import tempfile  # which loads a dozen modules that a call does not need

    ort = package("cpu")
    version = str(ort.__version__)
    broken = translated(f"ONNX Runtime {version} cannot optimise {what}")
    with broken, tempfile.TemporaryDirectory(prefix="s2f-") as folder:
        graph = Path(folder, "graph.onnx")
        weights = Path(folder, ort_kept.weights_name(cache, source, version))
        options = _options(ort, Settings("cpu", 1))
        options.optimized_model_filepath = str(graph)
        options.add_session_config_entry(_WEIGHTS_FILE, weights.name)
        options.add_session_config_entry(_WEIGHTS_LEAST, "1024")
        ort.InferenceSession(data, options, providers=[PROVIDERS["cpu"]])
        # A graph of few weights has them all inside, and no file.
        parts = graph.read_bytes(), weights.read_bytes() if weights.exists() else b""
    return ort_kept.write(cache, source, version, *parts)


def open_session(
    data: bytes,
    settings: Settings,
    what: str,
    extra: Mapping[str, str] = MappingProxyType({}),
    weights: Path | None = None,
) -> Any:
    """An InferenceSession on exactly the device asked for; `extra`: further options of the provider. `weights`: the
    folder of the weights of a graph that is optimised.

    Raises BackendFailed, DeviceUnavailable, DeviceOutOfMemory, BackendMissing.
    """
    ort = package(settings.device)
    wanted = PROVIDERS[settings.device]
    if settings.device == "cuda":
        _preload(ort)
    providers = [(wanted, {**_OPTIONS.get(settings.device, {}), **extra})]
    with translated(f"ONNX Runtime {ort.__version__} cannot open {what}"):
        session = ort.InferenceSession(data, _options(ort, settings, weights), providers=providers)
        session.disable_fallback()
    # ONNX Runtime only logs when a provider does not start, and carries on with the CPU.
    if session.get_providers()[:1] != [wanted]:
        raise DeviceUnavailable(
            f"ONNX Runtime {ort.__version__} has {wanted}, but it does not start here: {_why_not(ort)}"
        )
    return session


def _why_not(ort: Any) -> str:
    """The libraries that are missing, all of them, and what to do; where none is, it is the driver or the device."""
    lacking = missing(Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so")
    if "libcuda.so.1" in lacking:
        return "there is no NVIDIA driver (libcuda.so.1). Run: nvidia-smi, and install the driver where it is not found"
    if lacking:
        return f"libraries are missing: {', '.join(lacking)}. Run: pip install 'onnxruntime-gpu[cuda,cudnn]'"
    return "no usable device or driver. Run: nvidia-smi, and compare the driver's CUDA with that of onnxruntime-gpu"


def _options(ort: Any, settings: Settings, weights: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what fails is raised; a library does not write to the host's stderr
    if weights is not None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights))
    for key, value in _spinning(ort.__version__).items():
        options.add_session_config_entry(key, value)
    return options


def _spinning(version: str) -> dict[str, str]:
    """Session entries that keep idle workers from burning their cores; see the module."""
    release = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    entries = {"session.inter_op.allow_spinning": "0", "session.force_spinning_stop": "1"}
    if release < _SPIN_LIMIT_SINCE:
        return {**entries, "session.intra_op.allow_spinning": "0"}
    limit = str(SPIN_MICROSECONDS)
    return {**entries, "session.intra_op.allow_spinning": "1", "session.intra_op.spin_duration_us": limit}


def package(device: str) -> Any:
    """The package, imported on first use. Raises BackendMissing naming the extra."""
    if importlib.util.find_spec(NAME) is None:
        raise BackendMissing(f"ONNX Runtime is not installed, the device {device!r} needs it. Run: {_install(device)}")
    # Without this, its wheels (1.32) report their use to Microsoft over HTTPS and keep an identifier in the user's
    # cache. It is read once, as the package is loaded. What the user has set stays.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendMissing(
            f"ONNX Runtime is installed but cannot be imported: {_brief(error)}. Run: pip uninstall -y onnxruntime "
            f"onnxruntime-gpu && {_install(device)}"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        # Uninstalling one of the two packages removes files of the other and leaves an empty shell.
        raise BackendMissing(
            "ONNX Runtime is damaged: onnxruntime and onnxruntime-gpu were installed side by side. Run: pip uninstall "
            f"-y onnxruntime onnxruntime-gpu && {_install(device)}"
        )
    return onnxruntime


def _preload(ort: Any) -> None:
    """Find the CUDA libraries of pip's nvidia packages (ONNX Runtime ≥ 1.21); it prints what it does not find."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            ort.preload_dlls()
        if printed.getvalue():
            logger.info("preloading CUDA libraries: %s", printed.getvalue().strip())


def _install(device: str) -> str:
    return f'pip install "s2f-edge[{EXTRAS[device]}]"'


def _spec(node: Any) -> TensorSpec:
    """A graph's tensor in the manifest's terms: a free first dimension is "batch", any other stays a "?"."""
    shape: list[int | str] = []
    for index, dim in enumerate(node.shape):
        shape.append(dim if isinstance(dim, int) else "batch" if index == 0 else "?")
    return TensorSpec(node.name, _TYPES.get(node.type, node.type), tuple(shape))


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """ONNX Runtime's errors in the words of this package. A lack of memory is told by the text alone."""
    try:
        yield
    except Exception as error:  # they have no base class of their own
        text = _brief(error)
        if lacks_memory(text):
            raise DeviceOutOfMemory(f"{what}: {text}. Close what else uses the device.") from error
        raise BackendFailed(f"{what}: {text}.") from error


def _brief(error: Exception) -> str:
    """One line of at most 300 characters."""
    return " ".join(str(error).split())[:300].rstrip(" .")
