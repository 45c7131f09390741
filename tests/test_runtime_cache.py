"""The cache: whole entries or none, and nothing believed that somebody else could have written."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.cache import Cache, Refused
from runtime.errors import OutputUnwritable

ROOT = Path(__file__).parent.parent
KEY = {"graph": "unet", "batch": 1, "sources": {"unet": "ab" * 32}}
DATA = bytes(range(256)) * 40
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_what_is_written_is_read(cache: Cache) -> None:
    path = cache.write("engines", KEY, DATA)
    assert cache.read("engines", KEY) == DATA
    assert path == cache.path("engines", KEY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(p.stat().st_mode) for p in (cache.folder, path.parent)] == [0o700, 0o700]


def test_another_key_another_entry(cache: Cache) -> None:
    cache.write("engines", KEY, DATA)
    assert cache.read("engines", {**KEY, "batch": 2}) is None
    assert cache.read("records", KEY) is None
    cache.write("engines", {**KEY, "batch": 2}, b"two")
    assert cache.read("engines", KEY) == DATA


def test_an_entry_is_replaced_and_removed(cache: Cache) -> None:
    cache.write("engines", KEY, DATA)
    cache.write("engines", KEY, b"new")
    assert cache.read("engines", KEY) == b"new"
    cache.remove("engines", KEY)
    cache.remove("engines", KEY)
    assert cache.read("engines", KEY) is None


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "here"))
    assert Cache.default().folder == tmp_path / "here"
    monkeypatch.delenv("S2F_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache.default().folder.name == "s2f-edge"


def spoil_size(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def spoil_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def spoil_header(path: Path) -> None:
    path.write_bytes(b"planted\n" + DATA)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


def open_folder(path: Path) -> None:
    path.parent.chmod(0o777)


def open_root(path: Path) -> None:
    path.parent.parent.chmod(0o770)


def link(path: Path) -> None:
    other = path.parent / "elsewhere"
    path.rename(other)
    path.symlink_to(other)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_key(path: Path) -> None:
    head, _, data = path.read_bytes().partition(b"\n")
    header = json.loads(head)
    header["key"]["batch"] = 2
    path.write_bytes(json.dumps(header).encode() + b"\n" + data)


def other_magic(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"s2f-cache-1", b"s2f-cache-9", 1))


SPOILERS: list[tuple[Callable[[Path], None], str]] = [
    (spoil_size, "cut short"),
    (spoil_bytes, "sha256"),
    (spoil_header, "not a cache entry"),
    (empty, "not a cache entry"),
    (open_to_all, "written by others"),
    (open_folder, "written by others"),
    (open_root, "written by others"),
    (link, "cannot be opened"),
    (pipe, "not a regular file"),
    (folder, "not a regular file"),
    (other_key, "made for something else"),
    (other_magic, "made for something else"),
]


@pytest.mark.parametrize(("spoil", "reason"), SPOILERS, ids=[spoil.__name__ for spoil, _ in SPOILERS])
def test_what_could_be_somebody_elses_is_refused(cache: Cache, spoil: Callable[[Path], None], reason: str) -> None:
    path = cache.write("engines", KEY, DATA)
    spoil(path)
    with pytest.raises(Refused, match=reason):
        cache.read("engines", KEY)


def test_a_bare_file_is_nothing_but_its_bytes(cache: Cache) -> None:
    path = cache.write_bare("graphs", KEY, DATA)
    assert path.read_bytes() == DATA
    assert path == cache.check_bare("graphs", KEY, SHA, len(DATA))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    cache.write("graphs", KEY, b"entry")
    cache.remove("graphs", KEY)
    assert not list(path.parent.iterdir())


def unlink(path: Path) -> None:
    path.unlink()


BARE_SPOILERS: list[tuple[Callable[[Path], None], str]] = [
    (spoil_size, "cut short"),
    (spoil_bytes, "sha256"),
    (empty, "cut short"),
    (open_to_all, "written by others"),
    (open_folder, "written by others"),
    (open_root, "written by others"),
    (link, "cannot be opened"),
    (pipe, "not a regular file"),
    (folder, "not a regular file"),
    (unlink, "missing"),
]


@pytest.mark.parametrize(("spoil", "reason"), BARE_SPOILERS, ids=[spoil.__name__ for spoil, _ in BARE_SPOILERS])
def test_a_bare_file_that_is_not_what_was_written_is_refused(
    cache: Cache, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(cache.write_bare("graphs", KEY, DATA))
    with pytest.raises(Refused, match=reason):
        cache.check_bare("graphs", KEY, SHA, len(DATA))


def test_a_bare_file_is_not_held_in_memory_to_be_checked(cache: Cache) -> None:
    import tracemalloc

    data = bytes(4 << 20)
    cache.write_bare("graphs", KEY, data)
    sha = hashlib.sha256(data).hexdigest()
    tracemalloc.start()
    cache.check_bare("graphs", KEY, sha, len(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_entry_is_refused(cache: Cache) -> None:
    path = cache.write("engines", KEY, DATA)
    os.chown(path, 12345, 12345)
    with pytest.raises(Refused, match="another user"):
        cache.read("engines", KEY)


@pytest.mark.parametrize("spoil", [spoil_bytes, empty, open_to_all, link, pipe])
def test_a_refused_entry_is_written_again(cache: Cache, spoil: Callable[[Path], None]) -> None:
    spoil(cache.write("engines", KEY, DATA))
    cache.write("engines", KEY, b"again")
    assert cache.read("engines", KEY) == b"again"


@pytest.mark.parametrize("spoil", [open_folder, open_root])
def test_a_folder_others_may_write_is_refused_and_nothing_in_it_touched(
    cache: Cache, spoil: Callable[[Path], None]
) -> None:
    path = cache.write("engines", KEY, DATA)
    photo = cache.folder / "photos" / "2020" / "a.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"mine")
    spoil(path)
    for attempt in (lambda: cache.write("engines", KEY, DATA), lambda: cache.lock("engines", KEY).__enter__()):
        with pytest.raises(OutputUnwritable, match=r"written by others.*chmod go-w"):
            attempt()
    assert photo.read_bytes() == b"mine"
    for folder_ in (cache.folder, path.parent):
        folder_.chmod(folder_.stat().st_mode & ~0o022)
    assert cache.read("engines", KEY) == DATA


def test_half_written_entries_are_swept_once_they_are_old(cache: Cache) -> None:
    path = cache.write("engines", KEY, DATA)
    young, old = path.parent / ".new-young", path.parent / ".new-old"
    (path.parent / ".new-folder").mkdir()
    os.utime(path.parent / ".new-folder", (1, 1))
    for left in (young, old):
        left.write_bytes(DATA)
    os.utime(old, (1, 1))
    cache.write("engines", {**KEY, "batch": 9}, DATA)
    assert young.exists()
    assert not old.exists()


def test_reading_takes_no_more_memory_than_the_entry(cache: Cache) -> None:
    import tracemalloc

    cache.write("engines", KEY, DATA)
    tracemalloc.start()
    cache.read("engines", KEY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.binary(max_size=400))
def test_no_bytes_get_past_the_header(cache: Cache, data: bytes) -> None:
    path = cache.write("engines", KEY, b"")
    path.write_bytes(data)
    with pytest.raises(Refused):
        cache.read("engines", KEY)


def test_a_full_disk(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write("engines", KEY, DATA)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputUnwritable, match=r"No space left.*S2F_CACHE"):
        cache.write("engines", KEY, b"new")
    assert cache.read("engines", KEY) == DATA
    assert [p.name for p in cache.path("engines", KEY).parent.iterdir()] == [cache.path("engines", KEY).name]


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputUnwritable, match="S2F_CACHE"):
            Cache(place).write("engines", KEY, DATA)
        with pytest.raises(OutputUnwritable, match="S2F_CACHE"), Cache(place).lock("engines", KEY):
            pass


def test_one_holds_the_lock_the_other_waits(cache: Cache) -> None:
    waited, order = threading.Event(), []
    with cache.lock("engines", KEY):

        def second() -> None:
            with cache.lock("engines", KEY, waiting=waited.set):
                order.append("second")

        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


WRITER = """
import sys
from pathlib import Path
from runtime.cache import Cache
cache = Cache(Path(sys.argv[1]))
print("begun", flush=True)
for number in range(10_000_000):
    cache.write("engines", {"n": 1}, number.to_bytes(4, "little") * 100_000)
"""


def test_kill_9_while_writing_leaves_a_whole_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    seen = 0
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(cache.folder)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * attempt)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        data = cache.read("engines", {"n": 1})
        if data is not None:
            seen += 1
            assert data == data[:4] * 100_000
    assert seen
    cache.write("engines", {"n": 1}, b"last")
    assert cache.read("engines", {"n": 1}) == b"last"


def write_many(folder: str, number: int) -> None:
    for _ in range(100):
        Cache(Path(folder)).write("engines", KEY, bytes([number]) * 50_000)


def test_many_writers_of_one_entry(cache: Cache) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(str(cache.folder), number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    data = cache.read("engines", KEY)
    assert data is not None
    assert data == data[:1] * 50_000


def hold(folder: str, held: multiprocessing.synchronize.Event) -> None:
    with Cache(Path(folder)).lock("engines", KEY):
        held.set()
        time.sleep(600)


def test_a_killed_process_lets_go_of_its_lock(cache: Cache) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(str(cache.folder), held))
    process.start()
    assert held.wait(60)
    process.kill()
    process.join()
    with cache.lock("engines", KEY):
        pass
