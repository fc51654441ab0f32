#!/bin/sh
# A folder with TVM's libraries for Windows; tests/test_windows_run.py runs a compiled library on them under wine.
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
for wheel in root.glob("wheels/*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = pathlib.PurePosixPath(name)
            if path.name in ("tvm_ffi.dll", "tvm_runtime.dll"):
                (root / path.name).write_bytes(archive.read(name))
PYTHON
rm -r "$root/wheels"
