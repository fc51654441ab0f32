#!/bin/sh
# Build the device runtimes with AddressSanitizer, beside those of the venv $1, and run their tests.
set -eu
venv=$1
build=build/native-asan
PATH="$PWD/$venv/bin:$PATH"
cmake -G Ninja -S native -B $build -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython_EXECUTABLE="$PWD/$venv/bin/python" \
    -DCMAKE_CXX_FLAGS=-fsanitize=address,undefined -DCMAKE_SHARED_LINKER_FLAGS=-fsanitize=address,undefined >/dev/null
cmake --build $build
cmake --install $build --prefix "$PWD/$build/site" >/dev/null
cp native/minicpm_mlc_native/__init__.py $build/site/minicpm_mlc_native/
# Python and the drivers keep memory to their end, so leaks are not looked for.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so)"
export PYTHONPATH="$PWD/$build/site"
exec python -m pytest -q tests/test_native.py tests/test_native_vulkan.py
