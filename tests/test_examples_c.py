"""The programs that embed libs2f: how they are built, what they draw, what they refuse and what they leave behind."""

from __future__ import annotations

import array
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import soundfile
from capi.host import COMPILER, ROOT, STRICT, build_library, needs_compiler
from tiny_bundle import write_tiny_bundle

import runtime
from benchmarks import capi as benchmark
from runtime.bench import synthetic_speech

CMAKE, COMPILER_CXX = shutil.which("cmake"), shutil.which("c++")
PAGE = ROOT / "docs" / "EMBEDDING.md"
STRICTLY = "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"
RATE = 16000
VOICE = synthetic_speech(RATE)
SHORT = (VOICE * 32767).astype(np.int16)

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(CMAKE is None, reason="needs cmake"),
    pytest.mark.skipif(COMPILER_CXX is None, reason="needs a C++ compiler"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_library(tmp_path_factory.mktemp("s2f"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def programs(library, tmp_path_factory):
    """The folder of the programs, made by CMake as the page says."""
    folder = tmp_path_factory.mktemp("examples")
    for command in (
        [CMAKE, "-S", str(ROOT / "examples"), "-B", str(folder), f"-DCMAKE_PREFIX_PATH={library}", STRICTLY],
        [CMAKE, "--build", str(folder), "-j2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def voice(tmp_path):
    path = tmp_path / "voice.wav"
    soundfile.write(path, SHORT, RATE)
    return path


def ended(command, *, feed=b"", **options):
    """The finished process, its output as text."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in command], input=feed, capture_output=True, timeout=120, env=environment, **options
    )
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


@pytest.fixture
def kiosk(programs, bundle):
    """Runs the kiosk with the tiny bundle, unless another is named."""

    def run(*words, **options):
        default = [] if "--bundle" in words else ["--bundle", bundle]
        return ended([programs / "kiosk", *default, *words], **options)

    return run


def begun(command):
    """A running process with pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen([str(word) for word in command], stdin=pipe, stdout=pipe, stderr=pipe)


def test_kiosk_writes_the_file_that_the_command_line_writes(programs, voice, tmp_path):
    """The shipped bundle, so that what the file says of a model with options is compared as well."""
    made = ended([programs / "kiosk", voice, tmp_path / "c.png", "--seed", "7", "--steps", "2"])
    assert (made.returncode, made.stderr.splitlines()) == (0, [f"kiosk: step {n} of 2" for n in range(3)])
    assert re.fullmatch(r"\S+c\.png  seed 7, 2 steps, \d+\.\d ms\n", made.stdout)
    command = [sys.executable, "-m", "runtime", "generate", voice, "-o", tmp_path / "python.png"]
    assert ended([*command, "--seed", "7", "--steps", "2"], cwd=ROOT).returncode == 0
    assert (tmp_path / "c.png").read_bytes() == (tmp_path / "python.png").read_bytes()


@pytest.mark.parametrize(
    ("flags", "samples"),
    [
        (["--raw", RATE, 1], SHORT),
        (["--raw", RATE, 1, "--f32"], VOICE),
        (["--i16", "--raw", 48000, 2], np.stack([SHORT, SHORT[::-1]], axis=1)),
    ],
    ids=["int16", "float32", "stereo"],
)
def test_kiosk_takes_samples_from_a_pipe(kiosk, bundle, tmp_path, flags, samples):
    rate = flags[flags.index("--raw") + 1]
    image = tmp_path / "portrait.png"
    made = kiosk(*flags, "-", image, feed=samples.tobytes())
    assert made.returncode == 0, made.stderr
    with runtime.load(bundle, device="cpu") as pipeline:
        assert image.read_bytes() == pipeline.generate((samples, rate)).encode("png")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "words are missing"),
        (["IN"], 2, "words are missing after IN"),
        (["IN", "OUT", "more"], 2, "one word too many: more"),
        (["--frobnicate", "IN", "OUT"], 2, "no option --frobnicate"),
        (["IN", "OUT", "--seed"], 2, "--seed takes whole numbers in 0.."),
        (["IN", "OUT", "--seed", "-1"], 2, "not '-1'"),
        (["IN", "OUT", "--seed", "7x"], 2, "not '7x'"),
        (["IN", "OUT", "--bundle"], 2, "must follow --bundle"),
        (["-", "OUT"], 2, "--raw RATE CHANNELS and - go together"),
        (["IN", "OUT", "--raw", "16000", "1"], 2, "go together"),
        (["-", "OUT", "--raw", "16000"], 2, "--raw takes whole numbers"),
        (["-", "OUT", "--raw", "16000", "1", "--i16", "--f32"], 2, "one of --i16 and --f32"),
        (["-", "OUT", "--raw", "16000", "1"], 23, "at least 0.50 s"),
        (["-", "OUT", "--raw", "100", "1"], 21, "100 Hz is outside"),
        (["-", "OUT", "--raw", "16000", "300"], 10, "channels must be in 1..256"),
        (["IN", "OUT", "--steps", "3"], 11, "3 steps"),
        (["IN", "OUT", "--window", "end"], 10, "window must be one of"),
        (["IN", "OUT", "--device", "abacus"], 41, "abacus"),
        (["missing.wav", "OUT"], 20, "missing.wav does not exist"),
        (["IN", "missing/x.png"], 50, "missing/x.png cannot be written: No such file"),
        (["IN", "."], 50, "cannot be written: Is a directory"),
        (["IN", "/dev/null"], 50, "cannot be written"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_kiosk_refuses_with_the_code_as_its_status(kiosk, voice, words, status, said):
    given = [voice.name if word == "IN" else "out.png" if word == "OUT" else word for word in words]
    made = kiosk(*given, cwd=voice.parent)
    assert made.returncode == status, made.stderr
    last = made.stderr.splitlines()[-1]
    assert said.replace("IN", voice.name).replace("OUT", "out.png") in last
    assert ("error" in last) == (status != 2)
    assert list(voice.parent.iterdir()) == [voice]


def test_kiosk_ends_a_call_that_takes_too_long(programs, voice, tmp_path):
    made = ended([programs / "kiosk", voice, tmp_path / "out.png", "--timeout", "1"])
    assert (made.returncode, "error [82]" in made.stderr) == (82, True)


def test_a_new_file_takes_the_place_of_the_old_with_the_usual_rights(programs, bundle, voice, tmp_path):
    real, link = tmp_path / "real.png", tmp_path / "out.png"
    real.write_bytes(b"old")
    link.symlink_to(real)
    made = ended(["sh", "-c", 'umask 027; exec "$@"', "sh", programs / "kiosk", "--bundle", bundle, voice, link])
    assert made.returncode == 0, made.stderr
    assert (real.read_bytes(), link.is_symlink(), link.stat().st_mode & 0o777) == (b"old", False, 0o640)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "real.png", "voice.wav"]


def waiting(stream):
    """Bytes that nobody has read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(stream, termios.FIONREAD, count)
    return count[0]


def test_ctrl_c_ends_the_drawing_between_two_steps(programs, bundle, voice, tmp_path):
    """stderr takes the line of the first step and no other, so the kiosk is in the midst of a call when it is told."""
    out, line = tmp_path / "out.png", b"kiosk: step 0 of 4\n"
    reader, writer = os.pipe()
    room = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, bytes(room - len(line)))
    with subprocess.Popen([programs / "kiosk", "--bundle", bundle, voice, out], stderr=writer) as process:
        os.close(writer)
        end = time.monotonic() + 60
        while waiting(reader) < room and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        with os.fdopen(reader, "rb") as errors:
            said = errors.read().decode()
    assert (process.returncode, out.exists()) == (81, False)
    assert "error [81]: Cancelled by the caller after" in said


def test_ctrl_c_ends_the_listening(programs, bundle, tmp_path):
    with begun([programs / "kiosk", "--bundle", bundle, "--raw", RATE, 1, "-", tmp_path / "out.png"]) as process:
        process.stdin.write(VOICE.tobytes())  # more than a pipe holds: it is listening when this returns
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdin = None  # what is still in it has no reader
        assert (process.returncode, process.stderr.read()) == (81, b"kiosk: error [81]: interrupted\n")


@pytest.mark.parametrize("program", ["kiosk", "conference"])
def test_help_says_what_a_portrait_is_not(programs, program):
    made = ended([programs / program, "--help"])
    assert (made.returncode, made.stderr) == (0, "")
    assert "identifies nobody. Not for surveillance" in made.stdout
    assert max(map(len, made.stdout.splitlines())) <= 120


def heard(bundle):
    """The portrait that a stream draws of all the speech."""
    with runtime.load(bundle, device="cpu") as pipeline, pipeline.stream(sample_rate=RATE, seed=3) as stream:
        for piece in np.split(SHORT, SHORT.size // 320):
            stream.push(piece)
        return stream.finish(60)


def test_conference_writes_the_portrait_of_all_that_was_said(programs, bundle, tmp_path):
    out = tmp_path / "out.png"
    command = [programs / "conference", "--bundle", bundle, "--seed", 3, "--raw", RATE, 1, "-", out]
    made = ended(command, feed=SHORT.tobytes())
    assert (made.returncode, made.stderr) == (0, "")
    lines = [
        re.fullmatch(r"(.*)  portrait (\d+): after .* s of sound, .* s after the first", line)
        for line in made.stdout.splitlines()
    ]
    assert [(line[1], int(line[2])) for line in lines] == [(str(out), n + 1) for n in range(len(lines))]
    assert out.read_bytes() == heard(bundle).encode("png")


def test_conference_ends_well_on_a_signal_and_without_speech(programs, bundle, tmp_path):
    command = [programs / "conference", "--bundle", bundle, "--raw", RATE, 1, "--f32", "-", tmp_path / "out.png"]
    with begun(command) as process:
        process.stdin.write(VOICE.tobytes())
        process.stdin.flush()
        assert b"portrait 1" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdin = None
        assert (process.returncode, process.stderr.read()) == (0, b"")
    made = ended(command, feed=bytes(4 * RATE))
    assert made.returncode == 0
    assert made.stderr == "conference: 1.00 s of sound held too little speech for a portrait\n"


def test_conference_refuses(programs, bundle, tmp_path):
    for words, status in [(["-", "o"], 2), (["--raw", 10, 1, "-", "o"], 2), (["--raw", RATE, 1, "nowhere:x", "o"], 20)]:
        made = ended([programs / "conference", "--bundle", bundle, *words], cwd=tmp_path)
        assert made.returncode == status, made.stderr


def test_conference_hears_a_microphone(programs, bundle, tmp_path):
    """ALSA's own plugin that takes a file for a card."""
    if "alsa:DEVICE" not in ended([programs / "conference", "--help"]).stdout:
        pytest.skip("built without libasound2-dev")
    (tmp_path / "voice.raw").write_bytes(SHORT.tobytes())
    (tmp_path / "asound.conf").write_text(
        f'pcm.card {{ type file slave.pcm {{ type null }} file /dev/null infile "{tmp_path}/voice.raw" format raw }}'
    )
    environment = {**os.environ, "ALSA_CONFIG_PATH": str(tmp_path / "asound.conf")}
    command = [programs / "conference", "--bundle", bundle, "--raw", RATE, 1, "alsa:card", tmp_path / "out.png"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, env=environment) as process:
        assert b"portrait 1" in process.stdout.readline()
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_faces_draws_a_face_per_seed(programs, voice, tmp_path):
    made = ended([programs / "faces", voice, tmp_path / "face", "2"])
    assert made.returncode == 0, made.stderr
    with runtime.load(device="cpu") as pipeline:
        for seed in (0, 1):
            assert (tmp_path / f"face-{seed}.png").read_bytes() == pipeline.generate(voice, seed=seed).encode("png")
    made = ended([programs / "faces", "missing.wav", tmp_path / "face"])
    assert (made.returncode, made.stderr.startswith("faces: error [20]: missing.wav")) == (20, True)
    assert ended([programs / "faces"]).returncode == 2


WRAPPER = """
#include "s2f.hpp"
#include <cassert>
#include <cstring>
#undef NDEBUG

int main(int argc, char **argv)
{
    assert(argc == 3);
    s2f::Pipeline first(argv[1]), pipeline(std::move(first));
    int told = 0;
    const s2f::Portrait drawn = pipeline.generate_file(argv[2], {}, [&](int, int) { told++; return false; });
    assert(told == drawn.result.steps + 1 && drawn.pixels.size() == drawn.result.bytes_needed);
    try {
        pipeline.generate_file(argv[2], {}, [](int done, int) -> bool { throw done; });
        assert(!"what a progress function throws comes out of the call");
    } catch (int done) {
        assert(done == 0);
    }
    try {
        pipeline.generate_file(argv[2], {}, [](int done, int) { return done == 1; });
        assert(!"cancelled");
    } catch (const s2f::Error &error) {
        assert(error.code() == S2F_CANCELLED && std::strlen(error.what()) > 0);
    }
    std::vector<std::int16_t> noise(32000);
    for (std::size_t i = 0; i < noise.size(); i++) {
        noise[i] = static_cast<std::int16_t>(i * i % 9001);
    }
    assert(pipeline.generate(noise.data(), noise.size(), 16000, 1).pixels.size() == drawn.pixels.size());
    s2f::Stream stream = pipeline.stream({});
    stream.push(noise.data(), 320);
    assert(!stream.poll() && stream.info().heard_s == 0.02);
    try {
        stream.finish(1000);
        assert(!"a portrait of no speech");
    } catch (const s2f::Error &error) {
        assert(error.code() == S2F_AUDIO_SILENT);
    }
    try {
        s2f::Pipeline missing("/missing");
        assert(!"opened");
    } catch (const s2f::Error &error) {
        assert(error.code() == S2F_BUNDLE_NOT_FOUND);
    }
    return 0;
}
"""


def test_the_wrapper_for_cpp(library, bundle, voice, tmp_path):
    (tmp_path / "wrapper.cpp").write_text(WRAPPER)
    include = [f"-I{library / 'include'}", f"-I{ROOT / 'examples' / 'cpp'}"]
    linked = [f"-L{library / 'lib'}", f"-Wl,-rpath,{library / 'lib'}", "-ls2f"]
    command = [COMPILER_CXX, "-std=c++17", *STRICT[1:], *include, "wrapper.cpp", "-o", "wrapper", *linked]
    for words in (command, [tmp_path / "wrapper", bundle, voice]):
        made = ended(words, cwd=tmp_path)
        assert (made.returncode, made.stderr) == (0, "")


def test_what_the_page_shows_compiles(library, tmp_path):
    """Its programs in C, with the flags pkg-config gives."""
    if shutil.which("pkg-config") is None:
        pytest.skip("needs pkg-config")
    shown = re.findall(r"```c\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert shown
    paths = {**os.environ, "PKG_CONFIG_PATH": str(library / "lib" / "pkgconfig")}
    found = subprocess.run(["pkg-config", "--cflags", "--libs", "s2f"], env=paths, capture_output=True, text=True)
    for number, text in enumerate(shown):
        source = tmp_path / f"{number}.c"
        source.write_text(text)
        flags = ["-o", tmp_path / "program"] if "int main" in text else ["-c", "-o", tmp_path / "part.o"]
        made = ended([COMPILER, *STRICT, source, *flags, *found.stdout.split()])
        assert made.returncode == 0, made.stderr


def test_the_page_names_every_function(library):
    header = (library / "include" / "s2f.h").read_text(encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    functions = set(re.findall(r"^S2F_API [^(]*?\b(s2f_\w+)\(", header, flags=re.MULTILINE))
    assert len(functions) > 20
    assert functions <= set(re.findall(r"s2f_\w+", page))


def test_the_benchmark_measures(library, bundle, tmp_path, monkeypatch):
    if shutil.which("pkg-config") is None:
        pytest.skip("needs pkg-config")
    for name, value in {
        "ROUNDS": 2,
        "CALLS": 3,
        "WARMUP": 1,
        "STARTS": 1,
        "CANCELLED": 12,
        "PACED": 80,
        "LONG": 200,
    }.items():
        monkeypatch.setattr(benchmark, name, value)
    out = tmp_path / "report.json"
    command = ["capi", str(library), "--bundle", str(bundle), "--threads", "1", "--soak", "20", "-o", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    assert benchmark.main() == 0
    report = json.loads(out.read_text())
    assert len(report["overhead"]["raw_ms"]["c"]) == len(report["overhead"]["raw_ms"]["python"]) == 6
    assert sum(report["cancellation"]["codes"].values()) == 12
    assert set(report["cancellation"]["codes"]) <= {"0", "81"}
    assert report["soak"]["calls"] == 20
    assert {type(goal["holds"]) for goal in report["goals"].values()} == {bool}
    assert len(report["goals"]) == 4
    assert str(tmp_path) not in out.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "tool", ["address,undefined", *(pytest.param(name, marks=pytest.mark.soak) for name in ("thread", "valgrind"))]
)
def test_sanitizers_find_nothing(tool, tmp_path):
    done = ended(["sh", ROOT / "tests" / "sanitize.sh", tool, "programs", tmp_path])
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
