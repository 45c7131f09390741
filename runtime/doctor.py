"""What is here, what would be used and why not the rest: `s2f doctor`. What is missing is a finding, never an error."""

from __future__ import annotations

import dataclasses
import platform
from importlib import metadata

from . import __version__
from .backends import PREFERENCE, Device, available, is_preferred, is_ready, openvino_standing, settle
from .bundle import Manifest, read_manifest
from .errors import S2FError
from .machine import cpu_flags, cpu_model, load_average, usable_cores
from .pipeline import shipped_bundle

PACKAGES = (
    *("numpy", "soundfile", "soxr", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "tensorrt-lean", "pycuda", "cuda-bindings", "onnx"),
)


@dataclasses.dataclass(frozen=True)
class Report:
    """`chosen` is what device="auto" takes for the shipped bundle, None if nothing works; `precision` what precision=
    "auto" takes there, "auto" where what was prepared decides; `bundle` names the shipped bundle or its problem.
    `unprepared`: devices that work, but want `s2f prepare` before they draw it. `openvino`: what
    was measured of it for that bundle, empty where it does not work.
    """

    version: str
    python: str
    system: str
    cpu: str
    cpu_flags: list[str]
    threads: int
    load: list[float]
    packages: dict[str, str | None]
    devices: list[Device]
    unprepared: list[str]
    openvino: str
    chosen: str | None
    precision: str | None
    bundle: str
    bundle_usable: bool

    @property
    def healthy(self) -> bool:
        """Whether `s2f generate` with no option but its input can work here."""
        return self.chosen is not None and self.bundle_usable


def examine() -> Report:
    """Look at this machine and installation. Opens a tiny graph on each device: can take a second."""
    devices = available()
    manifest, bundle = _shipped()
    usable = [device.name for device in devices if device.usable]
    ready = [name for name in usable if is_ready(name, manifest)]
    chosen = next((name for name in PREFERENCE if name in ready and is_preferred(name, manifest)), None)
    return Report(
        version=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_model(),
        cpu_flags=cpu_flags(),
        threads=usable_cores(),
        load=load_average(),
        packages=package_versions(),
        devices=devices,
        unprepared=[name for name in usable if name not in ready],
        openvino=openvino_standing(manifest) if "openvino" in usable and manifest is not None else "",
        chosen=chosen,
        precision=None if chosen is None or manifest is None else settle(chosen, "auto", manifest),
        bundle=bundle,
        bundle_usable=manifest is not None,
    )


def package_versions() -> dict[str, str | None]:
    """Installed versions of PACKAGES, None for those that are not here."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def to_json(report: Report) -> dict[str, object]:
    """The report as plain values, with `healthy` and a schema version."""
    return {"schema_version": 1, "healthy": report.healthy, **dataclasses.asdict(report)}


def to_text(report: Report) -> str:
    """The report for a reader, one fact per line."""
    packages = ", ".join(f"{name} {version}" for name, version in report.packages.items() if version)
    lines = [
        f"s2f-edge   {report.version} on Python {report.python}, {report.system}",
        f"processor  {report.cpu}; {report.threads} threads by default; load {report.load or 'unknown'}",
        f"           {' '.join(report.cpu_flags) or 'no known instruction sets'}",
        f"packages   {packages or 'none'}",
        f"bundle     {report.bundle}",
        "devices",
    ]
    for device in report.devices:
        if device.usable:
            note = (
                f"works; the one --device auto takes{_precision(report)}" if device.name == report.chosen else "works"
            )
            if device.name in report.unprepared:
                note = f"works; before it draws the shipped bundle: s2f prepare --device {device.name}"
            lines.append(f"  {device.name:8} {device.backend}: {note}")
            if device.name == "openvino":
                lines.append(f"           {report.openvino}")
        else:
            lines.append(f"  {device.name:8} {device.backend}: not usable. {device.reason}")
            lines.append(f"           to change that: {device.cure}")
    lines.append("Ready." if report.healthy else "Not ready: see above.")
    return "\n".join(lines) + "\n"


def _precision(report: Report) -> str:
    """What --precision auto takes, for the line of the device that --device auto takes."""
    if report.precision is None:
        return ""
    return f", in {'the precision that was prepared' if report.precision == 'auto' else report.precision}"


def _shipped() -> tuple[Manifest | None, str]:
    """The shipped bundle's manifest and name, or None and what is wrong."""
    try:
        manifest, identity = read_manifest(shipped_bundle())
    except S2FError as error:
        return None, str(error)
    return manifest, f"{manifest.name} {identity[:12]} (shipped)"
