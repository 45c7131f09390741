"""What to build for which device: limits, precision, forms and batch sizes, and the peak figures estimates start from.

No preset asks for int8, which is a person's choice. Nothing here was measured; peak figures are NVIDIA's published
ones, at the highest power mode, dense. Importable everywhere: neither torch nor onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from runtime.errors import DeviceUnavailable, InvalidArgument

MIB = 1024**2
FORMS = ("stages", "pipeline")
OLD_JETSONS = MappingProxyType({"5.3": "Jetson Nano", "6.2": "Jetson TX2", "7.2": "Jetson Xavier"})
VISIBLE = 0.8  # of a module's memory: firmware keeps some, so an 8 GB module shows about 7.4 GiB

ORIN_NANO = "data sheet DS-11105; clocks, 34 and 67 sparse INT8 TOPS and bandwidth of the JetPack 6.2 announcement"
ORIN_NX = "data sheet DS-10712 v1.7, MAXN_SUPER: 157 and 117 sparse INT8 TOPS less 80 and 40 of the DLAs"
AGX_ORIN = "data sheet DS-10662 v1.8: 170 and 108 sparse INT8 TOPS of the GPU"
THOR = "Jetson Thor product page and the JetPack 7.1 announcement: 2070 and 1200 sparse FP4 TFLOP/s"


@dataclass(frozen=True)
class Figures:
    """Published peaks. `fp16_tflops`: dense, of the tensor cores; `bandwidth`: GB/s; `source`: NVIDIA's document.

    Where only sparse figures of narrower types are published, dense fp16 is a quarter of sparse INT8 and an eighth of
    sparse FP4.
    """

    cuda_cores: int
    gpu_ghz: float
    fp16_tflops: float
    bandwidth: float
    source: str

    @property
    def fp32_tflops(self) -> float:
        """Of the CUDA cores: one multiply-add per core and clock."""
        return 2 * self.cuda_cores * self.gpu_ghz / 1000


@dataclass(frozen=True)
class Preset:
    """What is built for a device.

    `capability`: compute capability such as "8.7", "" for any; `memory_mib`: of the module, shared by CPU and GPU;
    `workspace_mib`: the builder's limit for scratch memory; `forms`: of FORMS; `batches`: static batch sizes, rising, 1
    among them; `optimisation`: the builder's level, 0 to 5, 3 being TensorRT's own default; `parts` and `words` are how
    a board's device tree names it; `figures`: None where the device is not one device.
    """

    name: str
    device: str
    capability: str
    memory_mib: int
    workspace_mib: int
    batches: tuple[int, ...]
    forms: tuple[str, ...] = FORMS
    precision: str = "fp16"
    optimisation: int = 3
    parts: tuple[str, ...] = ()
    words: str = ""
    figures: Figures | None = None


_ALL = (
    Preset(
        name="orin-nano-4gb",
        device="Jetson Orin Nano 4 GB",
        capability="8.7",
        memory_mib=4096,
        workspace_mib=256,
        batches=(1,),
        forms=("stages",),  # one engine at a time is what 4 GB shared with the desktop are good for
        parts=("p3767-0004",),
        words="orin nano",
        figures=Figures(512, 1.020, 8.5, 51, ORIN_NANO),
    ),
    Preset(
        name="orin-nano",
        device="Jetson Orin Nano 8 GB",
        capability="8.7",
        memory_mib=8192,
        workspace_mib=512,
        batches=(1,),
        parts=("p3767-0003", "p3767-0005"),
        words="orin nano",
        figures=Figures(1024, 1.020, 16.75, 102, ORIN_NANO),
    ),
    Preset(
        name="orin-nx-8gb",
        device="Jetson Orin NX 8 GB",
        capability="8.7",
        memory_mib=8192,
        workspace_mib=512,
        batches=(1,),
        parts=("p3767-0001",),
        words="orin nx",
        figures=Figures(1024, 1.173, 19.25, 102, ORIN_NX),
    ),
    Preset(
        name="orin-nx",
        device="Jetson Orin NX 16 GB",
        capability="8.7",
        memory_mib=16384,
        workspace_mib=1024,
        batches=(1, 4),
        parts=("p3767-0000",),
        words="orin nx",
        figures=Figures(1024, 1.173, 19.25, 102, ORIN_NX),
    ),
    Preset(
        name="agx-orin-32gb",
        device="Jetson AGX Orin 32 GB",
        capability="8.7",
        memory_mib=32768,
        workspace_mib=2048,
        batches=(1, 4),
        parts=("p3701-0004",),
        words="agx orin",
        figures=Figures(1792, 0.939, 27.0, 204.8, AGX_ORIN),
    ),
    Preset(
        name="agx-orin",
        device="Jetson AGX Orin 64 GB",
        capability="8.7",
        memory_mib=65536,
        workspace_mib=2048,
        batches=(1, 4),
        parts=("p3701-0005",),
        words="agx orin",
        figures=Figures(2048, 1.300, 42.5, 204.8, AGX_ORIN),
    ),
    Preset(
        name="thor-t4000",
        device="Jetson T4000 64 GB",
        capability="11.0",
        memory_mib=65536,
        workspace_mib=2048,
        batches=(1, 4),
        words="thor",
        figures=Figures(1536, 1.530, 150.0, 273, THOR),
    ),
    Preset(
        name="thor",
        device="Jetson AGX Thor, T5000 128 GB",
        capability="11.0",
        memory_mib=131072,
        workspace_mib=4096,
        batches=(1, 4),
        parts=("p3834-0008",),
        words="thor",
        figures=Figures(2560, 1.575, 258.75, 273, THOR),
    ),
    Preset(
        name="desktop",
        device="any other NVIDIA GPU",
        capability="",
        memory_mib=4096,
        workspace_mib=1024,
        batches=(1, 4),
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
"""By name; the modules of one family by rising memory."""


def preset(name: str) -> Preset:
    """The preset of that name. Raises InvalidArgument."""
    if name not in PRESETS:
        raise InvalidArgument(f"There is no preset {str(name)[:40]!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def board(device_tree: Path = Path("/proc/device-tree")) -> str:
    """What the device tree calls this board: model, then compatible; empty where there is none, as on a PC."""
    found = []
    for name in ("model", "compatible"):
        try:
            found.append(
                (device_tree / name).read_bytes()[:4096].replace(b"\0", b" ").decode("utf-8", "replace").strip()
            )
        except OSError:
            continue
    return " ".join(found)


def detect(model: str, capability: str, memory: int | None = None) -> Preset:
    """The preset of the device with this compute capability ("8.7") on the board whose device tree says `model`.

    `model`: text of /proc/device-tree/model, or of `board`, which tells modules apart; `memory`: bytes the GPU sees.
    The capability decides first, since a board may carry another GPU; then the module's part number, then the name and
    the memory. Where several fit it is the smallest: its engines run on all of them. Raises DeviceUnavailable for a
    Jetson whose last JetPack has no TensorRT that this project builds for.
    """
    if capability in OLD_JETSONS:
        raise DeviceUnavailable(
            f"{OLD_JETSONS[capability]} (compute capability {capability}) ends at JetPack 5, whose TensorRT is older "
            "than 8.6. Use --device cpu there."
        )
    family = [preset for preset in _ALL if preset.capability == capability]
    if not family:
        return PRESETS["desktop"]
    text = model.lower()
    exact = next((one for one in family if any(part in text for part in one.parts)), None)
    if exact is not None:
        return exact
    named = [one for one in family if one.words in text] or family
    seen = 0 if memory is None else memory / MIB
    enough = [one for one in named if one.memory_mib * VISIBLE <= seen]
    return max(enough, key=_memory) if enough else min(named, key=_memory)


def _memory(preset: Preset) -> int:
    return preset.memory_mib
