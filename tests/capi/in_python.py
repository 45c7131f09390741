"""in_python.py LIBRARY PLACE HOW: a program in Python that uses libs2f by ctypes, and the package beside it."""

from __future__ import annotations

import ctypes
import datetime
import signal
import sys
import threading
from pathlib import Path

import numpy as np

library, place, how = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
streams, handler, path = (sys.stdout, sys.stderr), signal.getsignal(signal.SIGINT), list(sys.path)
if how == "after a capsule was looked into":
    getattr(datetime.datetime_CAPI, "anything", None)
s2f = (ctypes.PyDLL if "holding the GIL" in how else ctypes.CDLL)(library)
s2f.s2f_last_error.restype = ctypes.c_char_p
voice = np.fromfile(place / "voice.f32", np.float32)
images = []


def draw() -> None:
    pipeline, image = ctypes.c_void_p(), np.zeros((32, 32, 3), np.uint8)
    samples, pixels = (array.ctypes.data_as(ctypes.c_void_p) for array in (voice, image))
    size, room = ctypes.c_size_t(voice.size), ctypes.c_size_t(image.nbytes)
    codes = [s2f.s2f_open(str(place / "tiny").encode(), None, ctypes.byref(pipeline))]
    codes.append(s2f.s2f_generate(pipeline, samples, size, 16000, 1, None, pixels, room, None))
    codes.append(s2f.s2f_close(pipeline))
    codes.append(s2f.s2f_close(pipeline))
    if codes != [0, 0, 0, 80]:
        sys.stdout.write(f"{codes} {s2f.s2f_last_error()}\n")
    images.append(image)


threads = [threading.Thread(target=draw) for _ in range(4 if "from threads" in how else 0)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
draw()

import runtime

with runtime.load(place / "tiny", device="cpu", threads=1) as same:
    expected = same.generate((voice, 16000)).image
assert all(np.array_equal(image, expected) for image in images)
assert streams == (sys.stdout, sys.stderr)
assert handler is signal.getsignal(signal.SIGINT)
assert path == sys.path
sys.stdout.write("good\n")
