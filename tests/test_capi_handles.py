"""What stands behind a handle of C is closed once, also a stream that is opened while its pipeline is closed."""

from __future__ import annotations

import threading

from runtime.capi.handles import Handle, Table


class Target:
    """Counts."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_pipeline_and_its_stream_are_closed_once() -> None:
    pipeline = Handle(Table("pipeline"))
    stream, other = (Handle(Table("stream"), pipeline) for _ in range(2))
    targets = [Target(), Target(), Target()]
    for handle, target in zip((pipeline, stream, other), targets, strict=True):
        handle.target = target
        handle.admit()
    other.close()
    assert [target.closed for target in targets] == [0, 0, 1]
    pipeline.close()
    assert [target.closed for target in targets] == [1, 1, 1]


def test_a_stream_that_was_still_being_opened_is_closed() -> None:
    stream, target = Handle(Table("stream"), Handle(Table("pipeline"))), Target()
    stream.admit()
    inside, go_on = threading.Event(), threading.Event()

    def opens() -> None:
        with stream.use():
            inside.set()
            go_on.wait(10)
            stream.target = target

    opening = threading.Thread(target=opens)
    opening.start()
    assert inside.wait(10)
    closing = threading.Thread(target=stream.close)
    closing.start()
    go_on.set()
    for thread in (opening, closing):
        thread.join(10)
        assert not thread.is_alive()
    assert target.closed == 1
