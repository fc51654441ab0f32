#!/bin/sh
# Create a virtual environment; on a bare Debian or Ubuntu, install what Python leaves out there first.
set -eu
venv=$1
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "error: $("$python" --version) found, Python 3.10 or newer needed; try: make demo PYTHON=python3.12" >&2
    exit 1
}
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    package=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    echo "installing $package, which venv needs"
    $sudo apt-get update -q && $sudo apt-get install -y -q "$package" || {
        echo "error: Python's venv is incomplete; try: sudo apt-get install $package" >&2
        exit 1
    }
fi
"$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --upgrade pip
