"""Streams beside each other: threads, closing at any moment, what goes wrong, and the end of a process."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_factory import RATE, Block, Everything, Sound, open_on, same, speech, until, workers
from tiny_bundle import SHORTCUT, write_tiny_bundle

import runtime
from runtime import Pipeline, Portrait
from runtime.errors import (
    BackendFailed,
    Closed,
)
from runtime.watch import Watch

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["cpu", "tensorrt"])
def pipeline(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    with open_on(request.param, tmp_path, monkeypatch) as opened:
        yield opened


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", arm=SHORTCUT)


@pytest.fixture(scope="module")
def shared(bundle: Path) -> Iterator[Pipeline]:
    with runtime.load(bundle, device="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture
def cpu(bundle: Path) -> Iterator[Pipeline]:
    """One that a test may break or close."""
    with runtime.load(bundle, device="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    for _ in range(200):
        if not workers():
            return
        time.sleep(0.01)
    pytest.fail("a stream's worker did not end")


@pytest.fixture
def open_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.pipeline.detector", lambda _: Everything())


def test_two_streams_and_a_caller_share_a_pipeline(pipeline: Pipeline) -> None:
    sounds = [speech(5, seed=seed) for seed in range(2)]

    def alone(sound: Sound) -> Portrait:
        with pipeline.stream(RATE, seed=9) as stream:
            stream.push(sound)
            return stream.finish()

    expected = [alone(sound) for sound in sounds]
    voice = pipeline.generate((sounds[0], RATE))
    with pipeline.stream(RATE, seed=9) as one, pipeline.stream(RATE, seed=9) as other:
        for parts in zip(*(np.split(sound, 50) for sound in sounds), strict=True):
            for stream, part in zip((one, other), parts, strict=True):
                stream.push(part)
                stream.poll()
        assert same(pipeline.generate((sounds[0], RATE)), voice)
        assert same(one.finish(), expected[0])
        assert same(other.finish(), expected[1])
    assert not same(*expected)


def test_many_threads_push_and_poll_one_stream(shared: Pipeline) -> None:
    part = speech(0.5)
    with shared.stream(RATE) as stream:

        def work() -> None:
            for _ in range(20):
                stream.push(part)
                stream.poll()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stream.heard_seconds == 40
        stream.finish()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.floats(0, 0.02))
def test_close_at_any_moment(shared: Pipeline, pushes: int, pause: float) -> None:
    stream = shared.stream(RATE)
    for part in np.split(speech(4), 40)[:pushes]:
        stream.push(part)
    time.sleep(pause)
    stream.close()
    stream.close()
    assert not stream._thread.is_alive()
    for use in (lambda: stream.push(speech(1)), stream.poll, stream.finish, stream.__enter__):
        with pytest.raises(Closed):
            use()


def test_close_while_another_thread_pushes_and_one_waits(shared: Pipeline) -> None:
    stream = shared.stream(RATE)
    ends: list[str] = []

    def push() -> None:
        try:
            while True:
                stream.push(speech(0.1))
        except Closed:
            ends.append("push")

    def finish() -> None:
        try:
            while True:
                stream._studio.final(Watch())
        except Closed:
            ends.append("finish")

    stream.push(speech(1))
    threads = [threading.Thread(target=target) for target in (push, finish)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    stream.close()
    for thread in threads:
        thread.join(30)
    assert sorted(ends) == ["finish", "push"]


def test_close_ends_what_is_being_drawn(cpu: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(cpu, monkeypatch)
    stream = cpu.stream(RATE)
    stream.push(speech(1.5))
    assert block.inside.wait(30)
    begin = time.perf_counter()
    stream.close()
    assert time.perf_counter() - begin < 2
    block.leave.set()
    cpu.generate((speech(6), RATE))


def test_close_while_it_waits_for_its_turn(cpu: Pipeline) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold(*_: int) -> None:
        inside.set()
        leave.wait(30)

    caller = threading.Thread(target=lambda: cpu.generate((speech(6), RATE), progress=hold))
    caller.start()
    assert inside.wait(30)
    stream = cpu.stream(RATE)
    stream.push(speech(1.5))
    time.sleep(0.02)
    begin = time.perf_counter()
    stream.close()
    assert time.perf_counter() - begin < 2
    leave.set()
    caller.join(30)


def test_a_pipeline_closed_under_a_stream(cpu: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(cpu, monkeypatch)
    with cpu.stream(RATE) as stream:
        stream.push(speech(1.5))
        assert block.inside.wait(30)
        closing = threading.Thread(target=cpu.close)
        closing.start()
        block.leave.set()
        closing.join(30)
        assert not closing.is_alive()
        for use in (lambda: stream.push(speech(1)), stream.poll, stream.finish):
            with pytest.raises(Closed, match="pipeline"):
                use()
    with pytest.raises(Closed):
        cpu.stream(RATE)


@pytest.mark.parametrize("error", [BackendFailed("broken"), MemoryError("none left"), KeyboardInterrupt()])
def test_what_goes_wrong_is_told_once_and_tried_again(
    cpu: Pipeline, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    executor: Any = cpu._executor
    paint, calls = executor.paint, []

    def fails(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) < 3:
            raise error
        return paint(*arguments)

    monkeypatch.setattr(executor, "paint", fails)
    with cpu.stream(RATE) as stream:
        stream.push(speech(1.5))
        until(lambda: stream._studio._error)
        with pytest.raises(type(error)):
            stream.poll()
        assert stream.poll() is None
        time.sleep(0.02)
        assert len(calls) == 1
        stream.push(speech(0.1))
        with pytest.raises(type(error)):
            stream.finish()
        assert stream.finish().image.std() > 1


def test_who_waits_for_the_end_is_told_of_a_failure_that_a_poll_has_taken(
    cpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise BackendFailed("broken")

    monkeypatch.setattr(cpu._executor, "paint", fails)
    with cpu.stream(RATE) as stream:
        stream.push(speech(0.8))  # too little for a portrait before the end
        stop = threading.Event()

        def poll_on() -> None:
            while not stop.is_set():
                with contextlib.suppress(BackendFailed):
                    stream.poll()

        thread = threading.Thread(target=poll_on)
        thread.start()
        for _ in range(20):
            with pytest.raises(BackendFailed):
                stream.finish(30)
        stop.set()
        thread.join(30)


def test_an_encoder_that_fails_loses_nothing(cpu: Pipeline, monkeypatch: pytest.MonkeyPatch, open_gate: None) -> None:
    sound = speech(7)
    with cpu.stream(RATE) as stream:
        stream.push(sound)
        expected = stream.finish()
    executor: Any = cpu._executor
    encode, calls = executor.encode, []

    def fails(pcm: Any) -> Any:
        calls.append(1)
        if len(calls) % 2:
            raise BackendFailed("broken")
        return encode(pcm)

    monkeypatch.setattr(executor, "encode", fails)
    with cpu.stream(RATE) as stream:
        stream.push(sound)
        for _ in range(10):
            try:
                assert same(stream.finish(), expected)
                break
            except BackendFailed:
                continue
        assert stream.portrait_seconds == 7


def test_a_vad_model_that_fails_reaches_push(shared: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Everything):
        def hears(self, piece: Any) -> bool:
            raise BackendFailed("broken")

    monkeypatch.setattr("runtime.pipeline.detector", lambda _: Broken())
    with shared.stream(RATE) as stream, pytest.raises(BackendFailed):
        stream.push(speech(1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_instead_of_hanging(shared: Pipeline) -> None:
    with shared.stream(RATE) as stream:
        stream.push(speech(0.5))
        child = os.fork()
        if child == 0:
            told = 0
            for use in (lambda: stream.push(speech(1)), stream.poll, stream.finish, lambda: shared.stream(RATE)):
                try:
                    use()
                except BackendFailed:
                    told += 1
            stream.close()
            os._exit(0 if told == 4 else 1)
        assert os.waitpid(child, 0)[1] == 0
        stream.push(speech(1.5))
        stream.finish()


def test_a_stream_that_nobody_holds_ends(shared: Pipeline) -> None:
    shared.stream(RATE).push(speech(3))
    gc.collect()
    until(lambda: not workers())


def test_closed_streams_leave_nothing_behind(shared: Pipeline) -> None:
    """Also where the worker was in the midst of something, or had failed."""
    held: list[weakref.ref[object]] = []
    for pause in (0.0, 0.002, 0.01, 0.03) * 3:
        with shared.stream(RATE) as stream:
            stream.push(speech(4))
            time.sleep(pause)
            held += [weakref.ref(stream), weakref.ref(stream._thread)]
    del stream
    gc.collect()
    until(lambda: not any(one() for one in held))


def test_a_process_may_end_while_threads_draw() -> None:
    code = """
import sys, threading, time
import runtime
from runtime.bench import synthetic_speech
pipeline = runtime.load(device="cpu", threads=1)  # the shipped bundle: long enough in its graphs
def draw():
    while True:
        pipeline.generate((synthetic_speech(), 16000))
for _ in range(3):
    threading.Thread(target=draw, daemon=True).start()
time.sleep(0.2)
sys.stderr = None  # the threads' own last words: Cancelled and Closed
"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)"])
def test_a_process_that_forgets_to_close_ends_in_order(bundle: Path, end: str) -> None:
    code = f"""
import sys
import runtime
from runtime.bench import synthetic_speech
streams = [runtime.load(sys.argv[1], device="cpu", threads=1).stream(16000) for _ in range(3)]
for stream in streams:
    stream.push(synthetic_speech(seconds=8))
{end}
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_is_logged(shared: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), shared.stream(48000) as stream:
        stream.push(speech(2, 48000))
        stream.finish()
    assert [record for record in caplog.records if record.name.startswith("runtime")] == []
