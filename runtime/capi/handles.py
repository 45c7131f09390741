"""What stands behind a handle of C: who uses it at this moment, and that it ends when nobody does any more."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import Closed, InvalidArgument

MOST_MESSAGES = 256
"""Messages that wait for the next call; the oldest give way."""

_logger = logging.getLogger(__package__.partition(".")[0])


class _Here(threading.local):
    """What this thread is in the midst of, outermost first."""

    def __init__(self) -> None:
        self.inside: list[Handle] = []
        self.drawing: list[Handle] = []
        self.telling = False


_here = _Here()


class _Listeners:
    """All handlers that listen; while there are any, the logger's level is the lowest of theirs."""

    def __init__(self) -> None:
        self._lock, self._level = threading.Lock(), logging.NOTSET
        self._all: list[logging.Handler] = []

    def add(self, one: logging.Handler) -> None:
        with self._lock:
            if not self._all:
                self._level = _logger.level
            self._all.append(one)
            _logger.addHandler(one)
            self._set_level()

    def remove(self, one: logging.Handler) -> None:
        with self._lock:
            if one in self._all:
                self._all.remove(one)
                _logger.removeHandler(one)
                self._set_level()

    def _set_level(self) -> None:
        _logger.setLevel(min((one.level for one in self._all), default=self._level))


_listeners = _Listeners()


class Messages(logging.Handler):
    """Collects what the package logs, and tells it when no lock is held that the listener could want."""

    def __init__(self, tell: Callable[[int, str], None], level: int) -> None:
        """`tell`: called with a level and a text. `level`: the lowest that is collected."""
        super().__init__(level)
        self._tell, self._waiting = tell, deque[tuple[int, str]](maxlen=MOST_MESSAGES)
        _listeners.add(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the messages of calls with the own pipeline, and of threads that are in no call at all."""
        if not _here.inside or _here.inside[-1].root.messages is self:
            with contextlib.suppress(Exception):  # what cannot be formatted is dropped: nothing goes to stderr
                self._waiting.append((record.levelno, self.format(record)))

    def tell(self) -> None:
        """Tell what has been collected until now; not from within the listener."""
        if _here.telling:
            return
        _here.telling = True
        try:
            for _ in range(len(self._waiting)):
                try:
                    level, text = self._waiting.popleft()
                except IndexError:  # another thread tells the rest
                    break
                self._tell(level, text)
        finally:
            _here.telling = False

    def close(self) -> None:
        """Collect and tell no more."""
        _listeners.remove(self)
        self._waiting.clear()
        super().close()


class Handle:
    """A pipeline, or a stream of one (`parent`), as `target`: an object with a `close`."""

    def __init__(self, table: Table, parent: Handle | None = None) -> None:
        self.target: Any = None
        self.messages: Messages | None = None
        self.parent = parent
        self.root: Handle = self if parent is None else parent.root
        self.number = 0
        self._table, self._children = table, set[Handle]()
        self._condition, self._users, self._open = threading.Condition(), 0, True

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """A call with it, for whose end and messages `close` waits. Raises Closed."""
        with self.parent.use() if self.parent else contextlib.nullcontext():
            self._enter()
            _here.inside.append(self)
            try:
                yield
            finally:
                try:
                    if self.messages:
                        self.messages.tell()
                finally:
                    _here.inside.pop()
                    self._leave()

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """As `use`, for the call that makes the target: where that fails, nothing is left behind."""
        try:
            with self.use():
                yield
        except BaseException:
            self._end()
            raise

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """A progress function runs: on this thread nothing else can be drawn with the same pipeline, or closed."""
        _here.drawing.append(self.root)
        _here.inside.append(self)
        try:
            yield
        finally:
            _here.inside.pop()
            _here.drawing.pop()

    def check_not_drawing(self) -> None:
        """Raise InvalidArgument where the call would wait for itself."""
        if self.root in _here.drawing:
            raise InvalidArgument(
                "The pipeline was used from within its own progress function, which it waits for. Return first."
            )

    def admit(self) -> int:
        """Make it known under a number, which C keeps. Raises Closed if the pipeline was closed meanwhile."""
        if self.parent:
            with self.parent._condition:
                self.parent._check_open()
                self.parent._children.add(self)
        self.number = self._table.add(self)
        return self.number

    def close(self) -> None:
        """End it and its streams, once nobody uses them. Raises Closed; InvalidArgument from within its own call."""
        if self in _here.inside or self.root in _here.drawing:
            raise InvalidArgument(f"The {self._table.kind} was closed from within a function it called. Return first.")
        self._end()

    def _end(self) -> None:
        with self._condition:
            self._check_open()
            self._open = False
            children = list(self._children)
        closed = self.target if self.parent else None  # one that is still being opened has none yet
        try:
            if closed is not None:
                closed.close()  # a stream gives up what is drawn, and calls in progress end with that
            for child in children:
                with contextlib.suppress(Closed):
                    child._end()
            with self._condition:
                self._condition.wait_for(lambda: self._users == 0 and not self._children)
        finally:
            self._table.discard(self.number)
            self._give_back(closed)

    def _give_back(self, closed: Any) -> None:
        _here.inside.append(self)
        try:
            if self.target is not closed:
                self.target.close()
            if self.messages:
                self.messages.tell()
        finally:
            _here.inside.pop()
            if self.messages:
                self.messages.close()
            if self.parent:
                with self.parent._condition:
                    self.parent._children.discard(self)
                    self.parent._condition.notify_all()

    def _check_open(self) -> None:
        if not self._open:
            raise Closed(f"The {self._table.kind} is closed. Open it again.")

    def _enter(self) -> None:
        with self._condition:
            self._check_open()
            self._users += 1

    def _leave(self) -> None:
        with self._condition:
            self._users -= 1
            if self._users == 0:
                self._condition.notify_all()


class Table:
    """Handles of one kind by number. No number is given out twice."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._handles: dict[int, Handle] = {}
        self._issued, self._lock = 0, threading.Lock()

    def add(self, handle: Handle) -> int:
        """Its new number, from 1 on."""
        with self._lock:
            self._issued += 1
            self._handles[self._issued] = handle
            return self._issued

    def get(self, number: int) -> Handle:
        """Raises Closed for a number of the past, InvalidArgument for one that never was."""
        with self._lock:
            handle, known = self._handles.get(number), 0 < number <= self._issued
        if handle is not None:
            return handle
        if known:
            raise Closed(f"The {self.kind} is closed. Open it again.")
        raise InvalidArgument(f"The {self.kind} is not one that was opened here.")

    def discard(self, number: int) -> None:
        """Forget one."""
        with self._lock:
            self._handles.pop(number, None)
