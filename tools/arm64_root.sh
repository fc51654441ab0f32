#!/bin/sh
# A folder with Linux arm64's Python and the wheels that a bundle needs there; tests/test_linux_arm64.py runs it with qemu.
# arm64_root.sh FOLDER PYTHON: apt fetches the packages, PYTHON's pip the wheels; neither installs anything here.
set -eu
root=$1 python=$2
command -v apt-get >/dev/null || { echo "no apt-get here: the arm64 tests will be skipped" >&2; exit 1; }
rm -rf "$root"
apt=$(mkdir -p "$root" && cd "$root" && pwd)/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
touch "$apt/status"
# apt as on an arm64 machine with nothing installed, in a folder of its own
as_arm64() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Install-Recommends=false \
        -o APT::Sandbox::User= -o Acquire::Languages=none -o Dir::State::status="$apt/status" \
        -o Dir::State::lists="$apt/lists" -o Dir::State="$apt" -o Dir::Cache="$apt/cache" -o Debug::NoLocking=1 "$@"
}
as_arm64 update
as_arm64 -y --download-only install python3-minimal libpython3-stdlib libstdc++6 >/dev/null
for package in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
rm -rf "$apt"
version=$(ls "$root"/usr/bin | sed -n 's/^python3\.\([0-9]*\)$/3\1/p')
sed -n '/^dependencies/,/^]/s/^ *"\([^"]*\)".*/\1/p' "$(dirname "$0")/../pyproject.toml" | grep -v ziglang >"$root/needs.txt"
"$python" -m pip install --quiet --no-compile --only-binary=:all: --target "$root/site" --python-version "$version" \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 -r "$root/needs.txt"
