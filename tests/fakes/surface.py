"""The API tables, and modules that offer exactly what a table lists.

A fake is written once, as a superset of all releases. `build_module` copies from it what one release's table has: a
name outside the table does not exist (AttributeError), a name of the table that the fake lacks raises
NotImplementedError and says which, so that no test passes by accident.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import gzip
import importlib.machinery
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

API = Path(__file__).parent / "api"


@dataclasses.dataclass(frozen=True)
class Table:
    """One release's names: module-level values and functions, classes with members, enums with numbers.

    `writable`: the properties of a class that may be set.
    """

    module: str
    version: str
    source: str
    names: frozenset[str]
    classes: dict[str, tuple[str, ...]]
    enums: dict[str, dict[str, int]]
    writable: dict[str, tuple[str, ...]]

    def has(self, path: str) -> bool:
        """Whether a dotted path below the module exists; what lies beyond a value or a method is not judged."""
        first, *rest = path.split(".")
        if first in self.classes and rest:
            nested = self.enums.get(f"{first}.{rest[0]}")
            if nested is not None and len(rest) > 1:
                return _is_member(rest[1], nested)
            return _is_member(rest[0], self.classes[first])
        if first in self.enums and rest:
            return _is_member(rest[0], self.enums[first])
        return first in self.classes or _is_member(first, self.names) or first in self.enums


def _is_member(name: str, members: Any) -> bool:
    return name in members or (name.startswith("__") and name.endswith("__"))


@functools.cache
def load(module: str, version: str) -> Table:
    """The table of `module` at `version`, its first two numbers ("11.4")."""
    path = API / f"{module}-{version}.json.gz"
    if not path.exists():
        raise ValueError(f"no table of {module} {version}; there are {', '.join(versions(module))}")
    data = json.loads(gzip.decompress(path.read_bytes()))
    classes = {name: tuple(members) for name, members in data["classes"].items()}
    writable = {name: tuple(members) for name, members in data["writable"].items()}
    head = data["module"], data["version"], data["source"], frozenset(data["names"])
    return Table(*head, classes, data["enums"], writable)


def versions(module: str) -> list[str]:
    """All versions of a module that have a table, oldest first."""
    found = [path.name.removeprefix(f"{module}-").removesuffix(".json.gz") for path in API.glob(f"{module}-*.json.gz")]
    return sorted(found, key=lambda text: [int(part) for part in text.split(".")])


class PybindEnum(enum.Enum):
    """Like an enum of pybind11 without arithmetic: int(x) works, x == 0, 1 << x and iteration do not."""

    def __int__(self) -> int:
        return int(self.value)

    def __hash__(self) -> int:
        return int(self.value)

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class _PybindEnumMeta(enum.EnumMeta):
    def __iter__(cls) -> Any:
        raise TypeError("'pybind11_type' object is not iterable")

    def __len__(cls) -> int:
        raise TypeError("object of type 'pybind11_type' has no len()")


def make(cls: Any, *arguments: Any) -> Any:
    """An object of a class without a constructor for users: its `_setup` is called instead."""
    made = object.__new__(cls)
    made._setup(*arguments)
    return made


def package(name: str, **attributes: Any) -> types.ModuleType:
    """A package with nothing in it but these attributes; `importlib.util.find_spec` finds it."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__dict__.update(attributes, __path__=[])
    return module


def build_module(table: Table, behaviours: Mapping[str, Any], world: Any) -> types.ModuleType:
    """A module with the names of `table`.

    `behaviours`: name → a class, a value, or a function that takes the world first; "Enum.members" is a mixin of an
    enum. Every class knows `_world` and `_api`, the module it belongs to. Exception classes are taken as they are.
    """
    module = types.ModuleType(table.module)
    module.__spec__ = importlib.machinery.ModuleSpec(table.module, None)
    maker = _Maker(table, behaviours, {"_world": world, "_api": module})
    for name in {*table.classes, *table.enums} - {name for name in table.enums if "." in name}:
        setattr(module, name, maker.cls(name))
    for name in table.names & behaviours.keys():
        value = behaviours[name]
        setattr(module, name, types.MethodType(value, world) if callable(value) else value)

    def missing(name: str) -> Any:
        if name in table.names:
            raise NotImplementedError(f"{table.module} {table.version} has {name}, the fake does not: add it")
        raise AttributeError(f"module {table.module!r} has no attribute {name!r}")

    module.__dict__["__getattr__"] = missing
    return module


class Absent:
    """A member that the release has and the fake lacks."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        raise NotImplementedError(f"the fake does not implement {self.path}: add it")

    def __set__(self, instance: object, value: object) -> None:
        raise NotImplementedError(f"the fake does not implement {self.path}: add it")


class _Maker:
    """Makes the classes and enums of one module, each once."""

    def __init__(self, table: Table, behaviours: Mapping[str, Any], bound: Mapping[str, Any]) -> None:
        self.table, self.behaviours, self.bound = table, behaviours, bound
        self.made: dict[str, Any] = {}

    def cls(self, name: str) -> Any:
        """The class or enum of this name."""
        if name not in self.made:
            self.made[name] = self._enum(name) if name in self.table.enums else self._class(name)
        return self.made[name]

    def _enum(self, name: str) -> type:
        members, short = self.table.enums[name], name.rpartition(".")[2]
        if not self.table.module.startswith("tensorrt"):
            return enum.IntEnum(short, members, module=self.table.module)
        mixin = self.behaviours.get(f"{name}.members")
        bases = (mixin, PybindEnum) if mixin else (PybindEnum,)
        namespace = _PybindEnumMeta.__prepare__(short, bases)
        for member, number in members.items():
            namespace[member] = number
        namespace["__module__"] = self.table.module
        return _PybindEnumMeta(short, bases, namespace)

    def _class(self, name: str) -> type:
        """A class with the members its table lists; internal names, which begin with an underscore, stay."""
        implementation = self.behaviours.get(name)
        if implementation is None:
            refuse = _no_constructor(self._path(name), NotImplementedError, "not in the fake, add it")
            return type(name, (), {"__init__": refuse, **self._members(name, {}, set())})
        if issubclass(implementation, Exception):
            return implementation
        bases = tuple(self._base(base) for base in implementation.__bases__)
        own = dict(vars(implementation))
        namespace = {key: value for key, value in own.items() if key.startswith("_")}
        for key in ("__dict__", "__weakref__"):
            namespace.pop(key, None)
        inherited = {key for base in bases for cls in base.__mro__ for key in vars(cls)}
        namespace.update(self.bound, **self._members(name, own, inherited))
        namespace.setdefault("__setattr__", _closed)
        if "__init__" not in inherited - {*vars(object)}:
            namespace.setdefault("__init__", _no_constructor(self._path(name), TypeError, "No constructor defined!"))
        namespace["__module__"] = self.table.module
        return type(name, bases, namespace)

    def _members(self, name: str, own: Mapping[str, Any], inherited: set[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        members = [member for member in self.table.classes[name] if not member.startswith("__")]
        nested = [member for member in members if f"{name}.{member}" in self.table.enums]
        values = {key: value for inner in nested for key, value in self._nested(name, inner).__members__.items()}
        for member in members:
            if member in nested:
                found[member] = self._nested(name, member)
            elif member in own:
                fixed = isinstance(own[member], property) and member not in self.table.writable.get(name, ())
                found[member] = property(own[member].fget) if fixed else own[member]
            elif member in values:
                found[member] = values[member]
            elif member not in inherited:
                found[member] = Absent(f"{self.table.module} {self.table.version} {name}.{member}")
        return found

    def _nested(self, name: str, inner: str) -> Any:
        """One enum for all classes that list it with the same members: Logger.Severity is ILogger.Severity."""
        paths = [path for path in self.table.enums if path.endswith(f".{inner}")]
        members = self.table.enums[f"{name}.{inner}"]
        return self.cls(next(path for path in paths if self.table.enums[path] == members))

    def _base(self, base: type) -> type:
        known = base.__name__ in self.table.classes and self.behaviours.get(base.__name__) is base
        return self.cls(base.__name__) if known else base

    def _path(self, name: str) -> str:
        return f"{self.table.module}.{name}"


def _no_constructor(path: str, error: type[Exception], reason: str) -> Any:
    def refuse(self: object, *arguments: object, **named: object) -> None:
        raise error(f"{path}: {reason}")

    return refuse


def _closed(self: Any, name: str, value: object) -> None:
    """Classes of a C extension take no new attributes; Python subclasses of them do."""
    known = name.startswith("_") or "_world" not in vars(type(self)) or hasattr(type(self), name)
    if not known:
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
    object.__setattr__(self, name, value)
