"""Names of one installed API as JSON: run by make_tables.py inside each release's own environment.

    python introspect.py MODULE VERSION SOURCE FILE

Standard library only, and old Pythons welcome: it must run wherever the bindings do. A member list holds public names
and those special methods that change what calling code may do.
"""

import gzip
import importlib
import inspect
import json
import sys
from pathlib import Path

SPECIAL = ("__init__", "__len__", "__getitem__", "__iter__", "__int__", "__index__", "__enter__", "__exit__")


def describe(module):
    """{"names", "classes", "enums", "writable"} of an imported module; a nested enum is "Class.Enum"."""
    names, classes, enums, writable = [], {}, {}, {}
    for name in sorted(dir(module)):
        value = getattr(module, name)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if not inspect.isclass(value):
            names.append(name)
            continue
        members = enum_members(value)
        if members is not None:
            enums[name] = members
            continue
        classes[name] = public(value)
        properties = [member for member in classes[name] if getattr(getattr(value, member, None), "fset", None)]
        if properties:
            writable[name] = properties
        for inner in classes[name]:
            nested = enum_members(getattr(value, inner))
            if nested is not None:
                enums[f"{name}.{inner}"] = nested
    return {"names": names, "classes": classes, "enums": enums, "writable": writable}


def enum_members(value):
    """{name: number} of an enum of pybind11, Boost.Python or the standard library; None for anything else."""
    if not inspect.isclass(value):
        return None
    if issubclass(value, int) and isinstance(getattr(value, "names", None), dict):  # Boost.Python
        return {name: int(member) for name, member in sorted(value.names.items())}
    members = getattr(value, "__members__", None)
    return {name: int(member) for name, member in members.items()} if hasattr(members, "items") else None


def public(cls):
    """Sorted public names of a class, and the special methods that are not merely those of every object."""
    special = [name for name in SPECIAL if getattr(cls, name, None) is not getattr(object, name, None)]
    return special + sorted(name for name in dir(cls) if not name.startswith("_"))


def write(table, path):
    """JSON with one class or enum per line; packed where the name ends in .gz."""
    parts = []
    for key, value in table.items():
        if isinstance(value, dict):
            rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(inner)}" for name, inner in value.items())
            parts.append(f"{json.dumps(key)}: {{\n{rows}\n }}")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    data = ("{" + ",\n ".join(parts) + "}\n").encode()
    Path(path).write_bytes(gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)


if __name__ == "__main__":
    name, version, source, path = sys.argv[1:]
    found = importlib.import_module(name)
    write({"module": name.replace("_bindings", ""), "version": version, "source": source, **describe(found)}, path)
