"""One cold process, from Python's first line to a saved PNG: what `benchmarks.cold` starts. Prints JSON.

python -m benchmarks.cold_child STARTED BUNDLE DEVICE PRECISION SPEECH PNG

STARTED is the parent's `time.perf_counter` as it started this process; both read the same clock of the system.
"""

import sys
import time

STARTED, FIRST = float(sys.argv[1]), time.perf_counter()


def main() -> None:
    """Takes the time after each step, in the order in which `s2f generate` does them."""
    marks = [("start of Python", FIRST)]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))

    import runtime.pipeline

    mark("import numpy and this package")
    import PIL.Image  # noqa: F401 - what `generate` imports as it gets there
    import soundfile  # noqa: F401
    import soxr  # noqa: F401

    mark("import soundfile, soxr, Pillow")
    manifest = runtime.pipeline.read_manifest(sys.argv[2])[0]
    settings = runtime.pipeline.settings_for(manifest, sys.argv[3], precision=sys.argv[4])
    mark("choose and import the backend")
    bundle = runtime.pipeline.read_for(sys.argv[2], settings)
    mark("read and verify the bundle")
    from runtime.backends.base import Session

    begin = Session.__init__

    def timed(session, stage, *arguments, **more):  # type: ignore[no-untyped-def]
        begin(session, stage, *arguments, **more)
        mark(f"open {stage}")

    Session.__init__ = timed  # type: ignore[method-assign]
    pipeline = runtime.pipeline.Pipeline(bundle, settings)
    del bundle
    mark("open, the rest")
    portrait = pipeline.generate(sys.argv[5])
    mark("first portrait")
    portrait.save(sys.argv[6])
    mark("save PNG")
    import hashlib
    import json
    from pathlib import Path

    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = {name: int(status[key].split()[0]) / 1024 for name, key in (("peak", "VmHWM"), ("private", "RssAnon"))}
    begins = [STARTED, *(time for _, time in marks)]
    spent = {name: (end - start) * 1e3 for start, (name, end) in zip(begins, marks, strict=False)}
    loaded = [name for name in ("onnxruntime", "openvino") if name in sys.modules]
    drawn = hashlib.sha256(portrait.image.tobytes()).hexdigest()
    how = {"device": pipeline.device, "precision": pipeline.precision, "prepared": pipeline.prepared}
    sys.stdout.write(json.dumps({**how, "loaded": loaded, "image": drawn, "ms": spent, "mib": memory}) + "\n")


main()
