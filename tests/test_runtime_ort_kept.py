"""ONNX Runtime's optimised graphs: kept by `s2f prepare`, used where they can be trusted, and the same portraits."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import DIFFUSION, SHORTCUT, Arm, write_tiny_bundle

from export import ort_cpu as prepares
from runtime.backends import Settings, ort, ort_kept
from runtime.bench import synthetic_speech
from runtime.bundle import Bundle, read_bundle
from runtime.cache import Cache
from runtime.errors import OutputUnwritable
from runtime.pipeline import Pipeline, read_for, settings_for, shipped_bundle

VOICE = (synthetic_speech(), 16000)
TWO = Settings("cpu", 2)
NOTHING: Any = lambda _: None  # noqa: E731


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cache:
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    return Cache.default()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms have tests of their own."""
    monkeypatch.setattr(prepares, "record_forms", lambda *_: None)


@pytest.fixture
def shipped() -> Bundle:
    """As auto reads it, which is what prepare keeps."""
    return read_for(shipped_bundle(), settings_for(read_bundle(shipped_bundle()).manifest, "cpu"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each session: whether it is of a graph that was kept."""
    found: list[bool] = []
    real = ort.open_session

    def noted(*arguments: Any, weights: Path | None = None, **more: Any) -> Any:
        found.append(weights is not None)
        return real(*arguments, weights=weights, **more)

    monkeypatch.setattr(ort, "open_session", noted)
    return found


def files(cache: Cache, suffix: str) -> list[Path]:
    return sorted((cache.folder / ort_kept.KIND).glob(f"*{suffix}"))


def images(bundle: Bundle) -> list[Any]:
    drawn = []
    for threads in (1, 2):
        with Pipeline(bundle, Settings("cpu", threads)) as pipeline:
            drawn += [pipeline.generate(VOICE, seed=seed).image for seed in (0, 5)]
            drawn += [one.image for one in pipeline.generate(VOICE, seed=[1, 2, 3])]
    return drawn


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def test_the_shipped_bundle_byte_for_byte(shipped: Bundle, cache: Cache, opened: list[bool]) -> None:
    before = images(shipped)
    assert not any(opened)
    with Pipeline(shipped, TWO) as pipeline:
        assert not pipeline.prepared
    told: list[str] = []
    prepares.prepare(shipped, told.append)
    assert "which draw the same" in told[0]
    assert [len(files(cache, suffix)) for suffix in (".bin", ".raw")] == [3, 3]
    opened.clear()
    assert same(images(shipped), before)
    assert opened == [True] * 6


@pytest.mark.parametrize("arm", [SHORTCUT, DIFFUSION], ids=["shortcut", "diffusion"])
def test_a_graph_with_few_weights(arm: Arm, tmp_path: Path, opened: list[bool]) -> None:
    bundle = read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=arm))
    before = images(bundle)
    prepares.prepare(bundle, NOTHING)
    opened.clear()
    assert same(images(bundle), before)
    assert all(opened)


def test_weights_are_mapped_not_copied(shipped: Bundle, cache: Cache) -> None:
    prepares.prepare(shipped, NOTHING)
    with Pipeline(shipped, TWO) as pipeline:
        assert pipeline.prepared
        pipeline.generate(VOICE)
        maps = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else ""
    if not maps:
        pytest.skip("the system does not tell what is mapped")
    assert all(str(path) in maps for path in files(cache, ".raw"))


def test_a_folder_behind_a_link(shipped: Bundle, tmp_path: Path, monkeypatch: Any, opened: list[bool]) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "link" / "cache"))
    prepares.prepare(shipped, NOTHING)
    opened.clear()
    Pipeline(shipped, TWO).close()
    assert opened == [True] * 3


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def not_json(path: Path) -> None:
    """An entry that is whole, and not what is written there."""
    head, _, data = path.read_bytes().partition(b"\n")
    Cache(path.parent.parent).write(ort_kept.KIND, json.loads(head)["key"], b"{}" + data)


SPOILERS: list[tuple[str, Callable[[Path], None], str]] = [
    (".raw", damage, "damaged"),
    (".raw", Path.unlink, "missing"),
    (".raw", lambda path: path.chmod(0o666), "written by others"),
    (".bin", damage, "damaged"),
    (".bin", not_json, "not readable"),
]


@pytest.mark.parametrize("how", SPOILERS, ids=lambda how: f"{how[0]} {how[2]}")
def test_what_is_not_to_be_trusted_is_not_used(
    how: tuple[str, Callable[[Path], None], str], shipped: Bundle, cache: Cache, opened: list[bool], caplog: Any
) -> None:
    suffix, spoil, reason = how
    prepares.prepare(shipped, NOTHING)
    with Pipeline(shipped, TWO) as pipeline:
        wanted = pipeline.generate(VOICE).image
    spoil(files(cache, suffix)[0])
    opened.clear()
    with caplog.at_level(logging.WARNING), Pipeline(shipped, TWO) as pipeline:
        assert np.array_equal(pipeline.generate(VOICE).image, wanted)
    assert sorted(opened) == [False, True, True]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["the graph is optimised again"]
    assert reason in caplog.text


def test_another_release_or_processor_has_its_own(shipped: Bundle, monkeypatch: Any, opened: list[bool]) -> None:
    prepares.prepare(shipped, NOTHING)
    opened.clear()
    monkeypatch.setattr(ort_kept, "cpu_flags", lambda: ["avx"])
    Pipeline(shipped, TWO).close()
    assert opened == [False] * 3


def test_a_release_that_cannot_take_weights_from_a_folder(
    shipped: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch, opened: list[bool]
) -> None:
    monkeypatch.setattr(ort, "_WEIGHTS_FOLDER", "session.unknown")
    told: list[str] = []
    prepares.prepare(shipped, told.append)
    assert "nothing is kept" in told[0]
    assert not files(cache, ".bin") + files(cache, ".raw")
    opened.clear()
    Pipeline(shipped, TWO).close()
    assert opened == [False] * 3


def test_graphs_that_draw_something_else_are_not_kept(shipped: Bundle, cache: Cache, monkeypatch: Any) -> None:
    monkeypatch.setattr(prepares, "drawn", lambda _, opener: [np.full(3, opener is prepares.AsKept)])
    told: list[str] = []
    prepares.prepare(shipped, told.append)
    assert "draw something else" in told[0]
    assert not files(cache, ".bin") + files(cache, ".raw")


def test_a_cache_that_cannot_be_written(shipped: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputUnwritable, match="S2F_CACHE"):
        prepares.prepare(shipped, NOTHING)
