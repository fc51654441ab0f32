#!/bin/sh
# A folder with TVM's runtime for Windows; tests/test_windows_run.py runs a compiled library on it under wine.
# windows_root.sh FOLDER PYTHON: PYTHON's pip fetches the wheels; nothing is installed.
set -eu
root=$1 python=$2
rm -rf "$root"
mkdir -p "$root/wheels"
for need in apache-tvm apache-tvm-ffi; do
    version=$("$python" -c "import importlib.metadata as m; print(m.version('$need'))")
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --platform win_amd64 -d "$root/wheels" "$need==$version"
done
"$python" - "$root" <<'PYTHON'
import pathlib, sys, zipfile

root = pathlib.Path(sys.argv[1])
wanted = {  # of Microsoft's libraries those that a process there loads first: of tvm_ffi, and of Python
    "apache_tvm_ffi": ("tvm_ffi.dll", "msvcp140.dll"),
    "apache_tvm": ("tvm_runtime.dll", "vcruntime140.dll", "vcruntime140_1.dll"),
}
for wheel in root.glob("wheels/*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            file = pathlib.PurePosixPath(name).name
            if file in wanted[wheel.name.partition("-")[0]]:
                (root / file).write_bytes(archive.read(name))
PYTHON
rm -r "$root/wheels"
