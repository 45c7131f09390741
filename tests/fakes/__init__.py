"""TensorRT, pycuda and cuda-bindings without a GPU.

    world = install(monkeypatch, "10.3", capability=(8, 7))
    ...                              # code that imports tensorrt, pycuda.driver, cuda.bindings.driver
    world.counts.launches            # what it did
    world.check()                    # no violation, all memory given back

Names are exactly those of the release asked for (api/*.json.gz, made from the real bindings). What the fakes do is
written for these tests: memory is real memory of this process, engines run on ONNX Runtime, streams and graphs work
when the host waits for them. Nothing here says how fast a device is, or which tactics TensorRT would choose.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from . import bindings_fake, pycuda_fake
from .gpu import Gpu
from .surface import Table, build_module, load, package, versions
from .trt_build import BUILD
from .trt_common import COMMON
from .trt_config import CONFIG
from .trt_context import CONTEXT
from .trt_engine import ENGINE
from .trt_network import NETWORK
from .trt_parser import PARSER
from .world import MIB, Counts, Violation, World

TENSORRT: dict[str, Any] = COMMON | BUILD | CONFIG | NETWORK | PARSER | ENGINE | CONTEXT

__all__ = ["MIB", "TENSORRT", "Counts", "Table", "Violation", "World", "install", "load", "versions"]


def install(
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    *,
    lean: bool = False,
    cuda: str = "12.9",
    without: tuple[str, ...] = (),
    **settings: Any,
) -> World:
    """Put the fakes of one TensorRT release into sys.modules and return the world behind them.

    `version` is "8.6", "10.3", "10.13", "10.16" or "11.4"; `lean` offers tensorrt_lean instead of tensorrt ("10.16",
    "11.4"); `cuda` the version of cuda-bindings, "12.9" or "13.4"; `without` names packages or modules that cannot be
    imported ("tensorrt", "pycuda", "pycuda.driver", "cuda"); `settings` are fields of World: capability, memory,
    no_driver and so on.
    """
    name = "tensorrt_lean" if lean else "tensorrt"
    table = load(name, version)
    world = World(table.version, cuda=cuda, lean=lean, **settings)
    world.gpu = Gpu(world)
    trt = build_module(table, TENSORRT, world)
    trt.__dict__["__version__"] = table.version
    for alias, member in _ALIASES.items():
        if alias in table.names and member in table.enums["DataType"]:
            setattr(trt, alias, getattr(trt.DataType, member))
    pycuda = package("pycuda", VERSION=(2026, 1), VERSION_TEXT="2026.1")
    driver = build_module(load("pycuda.driver", "2026.1"), pycuda_fake.BEHAVIOURS, world)
    bound = load("cuda.bindings.driver", cuda)
    bindings = build_module(bound, bindings_fake.BEHAVIOURS, world)
    found = {
        name: trt,
        "pycuda": pycuda,
        "pycuda.driver": driver,
        "cuda": package("cuda"),
        "cuda.bindings": package("cuda.bindings", __version__=bound.version),
        "cuda.bindings.driver": bindings,
    }
    world.modules = found
    hidden = (*without, "tensorrt" if lean else "tensorrt_lean", "tensorrt_dispatch")
    for path in [path for path in sys.modules if path.split(".")[0] in ("tensorrt", "tensorrt_lean", "pycuda", "cuda")]:
        monkeypatch.delitem(sys.modules, path)
    for path in hidden:
        monkeypatch.setitem(sys.modules, path, None)  # an import fails, `find_spec` finds nothing
    for path, module in found.items():
        if not {path, path.split(".")[0]} & {*hidden}:
            monkeypatch.setitem(sys.modules, path, module)
            parent, _, child = path.rpartition(".")
            if parent:
                setattr(found[parent], child, module)
    monkeypatch.setattr(sys, "meta_path", [_Forbidden(world), *sys.meta_path])
    return world


class _Forbidden:
    """Finds what would make a context of its own, and says that it must not be imported."""

    def __init__(self, world: World) -> None:
        self.world = world

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in ("pycuda.autoinit", "pycuda.autoprimaryctx"):
            raise self.world.violate(f"{name} was imported: it makes a context of its own and keeps it current")


_ALIASES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "bool": "BOOL",
    "fp8": "FP8",
    "int4": "INT4",
    "fp4": "FP4",
}
