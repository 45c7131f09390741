"""pycuda's errors, how it names what failed, and what Boost.Python takes as a number."""

from __future__ import annotations

import functools
from typing import Any

from .cuda_types import NO_DEVICE, NOT_READY, OUT_OF_MEMORY, TEXTS, CudaError
from .world import World


class Error(Exception):
    """Base of pycuda's errors."""


class MemoryError(Error):  # noqa: A001 - its name in pycuda
    """CUDA_ERROR_OUT_OF_MEMORY."""


class LogicError(Error):
    """Any error that has no class of its own."""


class RuntimeError(Error):  # noqa: A001 - its name in pycuda
    """No device, not ready and the like."""


class LaunchError(Error):
    """A kernel failed."""


CLASSES = {OUT_OF_MEMORY: MemoryError, NO_DEVICE: RuntimeError, NOT_READY: RuntimeError}


def translated(name: str) -> Any:
    """Decorator: under the world's lock, and errors of the device as pycuda words those of `name`."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def call(owner: Any, *arguments: Any, **named: Any) -> Any:
            world: World = owner if isinstance(owner, World) else owner._world
            try:
                with world.lock:
                    return function(owner, *arguments, **named)
            except CudaError as error:
                raise CLASSES.get(error.code, LogicError)(f"{name} failed: {TEXTS[error.code]}") from None

        return call

    return decorate


class static:  # noqa: N801 - a decorator
    """A static method that still knows its world."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __get__(self, instance: object, owner: Any) -> Any:
        return functools.partial(self.function, owner._world)


def no_context() -> LogicError:
    """What pycuda says when an object is made without a current context."""
    return LogicError("explicit_context_dependent failed: invalid device context - no currently active context?")


def _argument_error(call: str, value: object) -> TypeError:
    """Boost.Python's refusal, whose class is a TypeError too."""
    return TypeError(
        f"Python argument types in pycuda._driver.{call}({type(value).__name__}) did not match C++ signature"
    )


def integer(call: str, value: object) -> int:
    """A number as Boost.Python takes it: an int of Python, not one of numpy, and no float."""
    if not isinstance(value, int):
        raise _argument_error(call, value)
    if value < 0:
        raise OverflowError("can't convert negative value to unsigned int")
    return int(value)
