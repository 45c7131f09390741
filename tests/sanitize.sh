#!/bin/sh
# The C layer, what embeds it, and its tests under a tool that finds faults, on the bundle of the tests.
#
#     sh tests/sanitize.sh address,undefined|thread|address|undefined|valgrind [programs|suite] [FOLDER]
#
# address, undefined, thread: libs2f.so and whatever runs it are compiled with that sanitizer: the examples and the
# benchmark's driver (programs, the default), or the tests test_capi_calls and test_capi_life (suite; test_capi_faults has
# an allocator of its own, which no sanitizer bears). What they call is not: CPython, numpy and ONNX Runtime run as they
# are, with the sanitizer's allocator and thread functions under them. Leaks are valgrind's part: CPython keeps what it
# allocates once, so only growth from cycle to cycle tells.
# valgrind: memcheck over two and over six cycles of open, generate, encode, stream, close. Both must lose the same
# number of bytes, and no error may be reported but those that capi-valgrind.supp knows, which are not ours.
#
# FOLDER keeps what was built and the reports. PYTHON and CC choose interpreter and compiler. Status 77: the tool is not
# here; 99 or 1: it found something.
set -eu
tool=${1:-}
part=${2:-programs}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
cc=${CC:-cc}
work=${3:-$(mktemp -d)}
mkdir -p "$work"
work=$(cd "$work" && pwd)
[ $# -gt 2 ] || trap 'rm -rf "$work"' EXIT
cd "$here"

missing() {
    echo "sanitize: $1" >&2
    exit 77
}

case $tool in
    address | undefined | thread | address,undefined)
        flags="-g -O1 -fsanitize=$tool -fno-sanitize-recover=all -fno-omit-frame-pointer"
        echo 'int main(void) { return 0; }' >"$work/probe.c"
        $cc $flags "$work/probe.c" -o "$work/probe" 2>/dev/null || missing "$cc cannot link -fsanitize=$tool" ;;
    valgrind)
        flags="-g -O1"
        command -v valgrind >/dev/null || missing "valgrind is not installed" ;;
    *)
        echo "sanitize: address, undefined, thread or valgrind, not '$tool'" >&2
        exit 2 ;;
esac
command -v cmake >/dev/null || missing "cmake is not installed"

# Report and stop with a status of its own, 99. Leaks: see above.
export ASAN_OPTIONS="detect_leaks=0:exitcode=99:strict_string_checks=1:detect_stack_use_after_return=1"
export UBSAN_OPTIONS="print_stacktrace=1:exitcode=99"
export TSAN_OPTIONS="exitcode=99:suppressions=$here/tests/capi-tsan.supp"
export OMP_NUM_THREADS=1

suite() {
    mkdir -p "$work/bin"
    printf '#!/bin/sh\nunset LD_PRELOAD\nexec %s %s "$@"\n' "$(command -v "$cc")" "$flags" >"$work/bin/cc"
    chmod +x "$work/bin/cc"
    unset CC
    preload= some=
    case $tool in # a program in Python is not compiled here, so the tool's library is loaded before it
        address*) preload="$($cc -print-file-name=libasan.so) $($cc -print-file-name=libubsan.so)" ;;
        undefined) preload=$($cc -print-file-name=libubsan.so) ;;
        thread) some="not program_in_python" ;; # which is impossible for this one
    esac
    PATH="$work/bin:$PATH" LD_PRELOAD=$preload "$python" -m pytest -p no:cacheprovider -q -m "not soak" -k "$some" \
        tests/test_capi_calls.py tests/test_capi_life.py
}

if [ "$part" = suite ]; then
    suite
    exit
fi

CC=$cc CFLAGS=$flags LDFLAGS=$flags "$python" -m runtime.capi.build build -o "$work/s2f" >/dev/null
sanitizer=$tool
[ "$tool" != valgrind ] || sanitizer=
CC=$cc cmake -S examples -B "$work/examples" -DCMAKE_PREFIX_PATH="$work/s2f" -DCMAKE_BUILD_TYPE=Debug \
    -DS2F_SANITIZE="$sanitizer" >"$work/cmake.log" 2>&1 || { cat "$work/cmake.log"; exit 1; }
cmake --build "$work/examples" >"$work/cmake.log" 2>&1 || { cat "$work/cmake.log"; exit 1; }
$cc -std=c99 -Wall -Wextra -Wpedantic -Werror -pthread $flags -I"$work/s2f/include" benchmarks/capi_driver/*.c \
    -o "$work/driver" -L"$work/s2f/lib" -ls2f -Wl,-rpath,"$work/s2f/lib"
PYTHONPATH=tests "$python" - "$work" <<'END'
import sys
from pathlib import Path

import numpy as np

from runtime.bench import synthetic_speech
from tiny_bundle import write_tiny_bundle

work = Path(sys.argv[1])
write_tiny_bundle(work / "tiny")
speech = synthetic_speech()
speech.tofile(work / "speech.f32")
np.tile((speech * 32767).astype(np.int16), 2).tofile(work / "speech.i16")
END

# Runs a command whose status must be the first argument; what it says goes to a file of the second's name.
expect() {
    wanted=$1 name=$2
    shift 2
    status=0
    "$@" >"$work/$name.log" 2>&1 || status=$?
    if [ "$status" != "$wanted" ]; then
        echo "sanitize: $tool, $name: status $status, not $wanted" >&2
        tail -n 60 "$work/$name.log" >&2
        exit 1
    fi
    echo "$tool, $name: good"
}

driver() {
    mode=$1 count=$2
    shift 2
    expect 0 "$mode" "$work/driver" "$mode" "$work/tiny" "$work/speech.f32" 2 1 "$count" "$@"
}

programs() {
    kiosk="$work/examples/kiosk" raw="--raw 16000 1 --bundle $work/tiny"
    expect 0 kiosk-file "$kiosk" examples/woman.wav "$work/a.png" --bundle "$work/tiny" --verbose
    expect 0 kiosk-i16 sh -c "$kiosk $raw - $work/b.png <$work/speech.i16"
    expect 0 kiosk-f32 sh -c "$kiosk $raw --f32 - $work/c.png <$work/speech.f32"
    expect 2 kiosk-usage "$kiosk" --seed
    expect 20 kiosk-missing "$kiosk" "$work/missing.wav" "$work/d.png" --bundle "$work/tiny"
    expect 30 kiosk-bundle "$kiosk" examples/woman.wav "$work/d.png" --bundle "$work/missing"
    expect 50 kiosk-unwritable "$kiosk" examples/woman.wav "$work" --bundle "$work/tiny"
    expect 82 kiosk-late "$kiosk" examples/woman.wav "$work/d.png" --timeout 1
    expect 0 conference sh -c "$work/examples/conference $raw - $work/e.png <$work/speech.i16"
    expect 0 faces "$work/examples/faces" examples/woman.wav "$work/f" 2
}

# Bytes that memcheck calls definitely lost after so many cycles.
lost() {
    expect 0 "cycles-$1" valgrind --leak-check=full --show-leak-kinds=definite --error-exitcode=99 \
        --errors-for-leak-kinds=none --suppressions="$here/tests/capi-valgrind.supp" --gen-suppressions=all \
        "$work/driver" cycles "$work/tiny" "$work/speech.f32" 2 1 "$1" >&2
    sed -n 's/.*definitely lost: \([0-9,]*\) bytes.*/\1/p' "$work/cycles-$1.log" | tr -d ,
}

if [ "$tool" = valgrind ]; then
    few=$(lost 2)
    many=$(lost 6)
    echo "valgrind: $few bytes definitely lost in 2 cycles, $many in 6"
    [ "${few:-none}" = "${many:-nothing}" ] || exit 1
else
    driver cycles 5
    driver soak 50
    driver cancel 40
    driver threads 40 8
    programs
fi
