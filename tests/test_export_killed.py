"""kill -9 at any moment of a build: what lies in the cache is whole, and the next build goes on from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import SHORTCUT, write_tiny_bundle

ROOT = Path(__file__).parent.parent
KILLS = 100

# One process imports everything, then forks a builder for every kill: a fresh interpreter each time would take minutes.
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import fakes, onnx, onnxruntime, pytest
world = fakes.install(pytest.MonkeyPatch(), "10.3")
world.build_seconds = 0.03
from export import trial
trial.PATIENCE, trial.RUNS = 0.0, 2  # how fast the engines are does not matter here
from export.adaptor import Builder, BuildOptions
from export.engines import Request, build
from runtime.backends import Settings, tensorrt
from runtime.bench import synthetic_speech
from runtime.bundle import read_bundle
from runtime.cache import Cache, Refused
from runtime.engines import ENGINES, engine_key
from runtime.errors import NotPrepared
from runtime.pipeline import Pipeline

bundle, kills = read_bundle(Path(sys.argv[1])), int(sys.argv[2])
cache, rng = Cache.default(), random.Random(5)
place = tensorrt.place_here(tensorrt.package())
request = Request((1,), (4,), "fp16", BuildOptions())
specs = [*request.stages(), *request.pipelines()]
options = request.record("").options
seen = {"finished": 0, "whole": 0, "absent": 0, "refused": 0, "drawn": 0, "not prepared": 0}
moments = {"between": 0, "building": 0, "writing": 0}
moment = Path(sys.argv[3])

def during(owner, name, what):
    # Notes in a file what the builder is doing, so that a kill can be told its moment.
    real = getattr(owner, name)
    def noted(*arguments, **more):
        moment.write_text(what)
        time.sleep(0.015)  # a slow disk, a slow device
        try:
            return real(*arguments, **more)
        finally:
            moment.write_text("between")
    setattr(owner, name, noted)

during(Builder, "build", "building")
during(os, "fsync", "writing")

def builder():
    build(bundle, request, cache, lambda line: None)

def draw():
    # In a process of its own, so that this one never has threads when it forks.
    child = os.fork()
    if child == 0:
        try:
            with Pipeline(bundle, Settings("tensorrt", 1)) as pipeline:
                pipeline.generate((synthetic_speech(), 16000))
            os._exit(0)
        except NotPrepared:
            os._exit(43)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def attempt(delay):
    child = os.fork()
    if child == 0:
        try:
            builder()
            os._exit(0)
        except BaseException:
            os._exit(1)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for number in range(kills):
    for path in cache.folder.glob("engines/*.bin"):
        if rng.random() < 0.5:
            path.unlink()
    status = attempt(rng.uniform(0, 0.6))
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"a builder failed with {status}")
    if status:
        moments[moment.read_text() or "between"] += 1
    else:
        seen["finished"] += 1
    for spec in specs:
        try:
            data = cache.read(ENGINES, engine_key(bundle.manifest, place, spec, options))
        except Refused:
            seen["refused"] += 1
            continue
        seen["absent" if data is None else "whole"] += 1
    status = draw()
    if status not in (0, 43):
        raise SystemExit(f"a portrait failed with {status}")
    seen["not prepared" if status else "drawn"] += 1
seen["last build"], seen["last portrait"] = attempt(None), draw()
print(json.dumps({"seen": seen, "moments": moments}))
"""


@pytest.mark.slow
def test_a_hundred_kills_and_never_a_partial_engine(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT)
    environment = {**os.environ, "S2F_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(KILLS), str(tmp_path / "moment")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    seen, moments = result["seen"], result["moments"]
    assert sum(moments.values()) + seen["finished"] == KILLS
    assert seen["refused"] == 0
    assert (seen["last build"], seen["last portrait"]) == (0, 0)
    # Kills must have met every kind of moment, and left engines behind as well as gaps, or this has shown nothing.
    assert min(moments.values()) >= 3, result
    assert sum(moments.values()) >= KILLS * 0.6, result
    assert min(seen["whole"], seen["absent"], seen["drawn"], seen["not prepared"]) > 0, result
