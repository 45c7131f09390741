"""Holds source code against the API tables: which names of TensorRT and CUDA it uses, and which release lacks them.

A name counts where the code says whose it is: `trt.BuilderFlag.FP16` or `self._trt.BuilderFlag.FP16` by the variable
of the module, `config.set_flag` by the variable of the object. `hasattr(x, "name")` and `getattr(x, "name", default)`
ask first and count for nothing; `getattr(x, "name")` counts. Code for some releases only may say so in a comment:

    builder.create_network(1 << int(flags.EXPLICIT_BATCH))  # TensorRT < 10
    def tell_types(network):  # TensorRT < 10

The comment goes for its line, or for all that is indented below it where the line ends with a colon.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from .surface import Table

MODULES = {"trt": "tensorrt", "tensorrt": "tensorrt", "driver": "pycuda.driver", "drv": "pycuda.driver"}
"""Which module a variable is, whether it stands alone or behind a dot, with or without underscores before it."""

RECEIVERS = {
    "builder": "tensorrt.Builder",
    "network": "tensorrt.INetworkDefinition",
    "parser": "tensorrt.OnnxParser",
    "config": "tensorrt.IBuilderConfig",
    "layer": "tensorrt.ILayer",
    "tensor": "tensorrt.ITensor",
    "runtime": "tensorrt.Runtime",
    "engine": "tensorrt.ICudaEngine",
    "context": "tensorrt.IExecutionContext",
    "inspector": "tensorrt.EngineInspector",
}
"""Which class a variable is an object of."""

Compare = Callable[[tuple[int, ...], tuple[int, ...]], bool]
_COMPARISONS: dict[str, Compare] = {"<": operator.lt, ">=": operator.ge, "≥": operator.ge}
_MARK = re.compile(r"# TensorRT (>=|<|≥) ?(\d+)(?:\.(\d+))?")


@dataclasses.dataclass(frozen=True, order=True)
class Use:
    """A dotted name below a module that a line of source uses."""

    file: str
    line: int
    module: str
    name: str


@dataclasses.dataclass(frozen=True, order=True)
class Missing:
    """A use that a release does not have."""

    version: str
    use: Use

    def __str__(self) -> str:
        return f"{self.use.file}:{self.use.line}: {self.use.module} {self.version} has no {self.use.name}"


def missing(
    files: Iterable[Path],
    tables: Iterable[Table],
    modules: Mapping[str, str] = MODULES,
    receivers: Mapping[str, str] = RECEIVERS,
) -> list[Missing]:
    """Every (release, name) that `files` use without saying for which releases, and that a table lacks.

    A table is asked only about its own module; "tensorrt_lean" answers for "tensorrt" too, without what builds.
    """
    tables = list(tables)
    found = []
    for file in files:
        source = file.read_text(encoding="utf-8")
        marks = _marks(source)
        for use in uses(source, file.name, modules, receivers):
            for table in tables:
                same = table.module in (use.module, f"{use.module}_lean")
                release = tuple(int(part) for part in table.version.split(".")[:2])
                wanted = all(compare(release, limit) for compare, limit in marks.get(use.line, []))
                if same and wanted and not table.has(use.name):
                    found.append(Missing(table.version, use))
    return sorted(found)


def uses(source: str, file: str, modules: Mapping[str, str], receivers: Mapping[str, str]) -> Iterator[Use]:
    """All names of the modules that `source` uses, the longest chain of each place only."""
    tree = ast.parse(source)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        chain = _chain(node)
        if chain is None or id(node) in inner or not isinstance(node, ast.Attribute | ast.Call):
            continue
        found = _resolve(chain, modules, receivers)
        if found is not None:
            yield Use(file, node.lineno, *found)


def _chain(node: ast.AST) -> list[str] | None:
    """["self", "_trt", "BuilderFlag", "FP16"] of such an expression, getattr with a literal name included."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = _chain(node.value)
        return None if before is None else [*before, node.attr]
    asks = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
    if asks and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
        before = _chain(node.args[0])
        return None if before is None else [*before, str(node.args[1].value)]
    return None


def _resolve(chain: list[str], modules: Mapping[str, str], receivers: Mapping[str, str]) -> tuple[str, str] | None:
    """(module, name) of a chain; None where it begins with nothing known or uses nothing of it."""
    start = 1 if chain[0] in ("self", "cls") else 0
    first = chain[start].lstrip("_") if start < len(chain) else ""
    rest = chain[start + 1 :]
    if not rest:
        return None
    if first in modules:
        return modules[first], ".".join(rest)
    if first in receivers and not rest[0].startswith("_"):
        module, _, cls = receivers[first].rpartition(".")
        return module, f"{cls}.{rest[0]}"
    return None


def _marks(source: str) -> dict[int, list[tuple[Compare, tuple[int, ...]]]]:
    """Line → the comparisons that a release must pass to be meant there."""
    marks: dict[int, list[tuple[Compare, tuple[int, ...]]]] = {}
    lines = source.splitlines()
    for number, line in enumerate(lines, start=1):
        found = _MARK.search(line)
        if not found:
            continue
        limit = (int(found[2]), int(found[3] or 0))
        condition = (_COMPARISONS[found[1]], limit)
        block = line[: found.start()].rstrip().endswith(":")
        for below in _block(lines, number) if block else [number]:
            marks.setdefault(below, []).append(condition)
    return marks


def _block(lines: list[str], number: int) -> Iterator[int]:
    """The line `number` and all that is indented deeper below it."""
    depth = len(lines[number - 1]) - len(lines[number - 1].lstrip())
    yield number
    for below in range(number + 1, len(lines) + 1):
        text = lines[below - 1]
        if text.strip() and len(text) - len(text.lstrip()) <= depth:
            return
        yield below
