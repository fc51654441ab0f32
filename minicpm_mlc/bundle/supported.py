"""Systems that TVM's compiler and runtime have no wheels for are told so by name, before anything
is downloaded or compiled.
"""

from __future__ import annotations

import sysconfig

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.bundle.host import Host, this_host

SUPPORTED = frozenset(
    {
        ("linux", "x86_64"),
        ("linux", "aarch64"),
        ("darwin", "aarch64"),
        ("windows", "x86_64"),
    }
)
_NAMES = {("darwin", "x86_64"): "an Intel Mac", ("windows", "aarch64"): "Windows on Arm"}


class UnsupportedSystemError(MiniCPMError):
    """A system that can neither compile nor run bundles with this package."""


def check_system() -> None:
    """Raises UnsupportedSystemError on a system without wheels of TVM."""
    host = this_host()
    musl = host.system == "linux" and "musl" in str(sysconfig.get_config_var("SOABI"))
    if (host.system, host.machine) not in SUPPORTED or musl:
        raise UnsupportedSystemError(
            f"this is {_name(host, musl)}, for which TVM has no wheels; use Linux with glibc on "
            "x86-64 or arm64, macOS on Apple silicon, or Windows on x86-64. On one of these, "
            "minicpm-mlc compile also makes bundles for other devices"
        )


def _name(host: Host, musl: bool) -> str:
    if musl:
        return f"Linux with musl (such as Alpine) on {host.machine}"
    if host.system == "linux" and host.machine.startswith("arm"):
        return f"32-bit Arm Linux ({host.machine})"
    return _NAMES.get((host.system, host.machine), f"{host.system} on {host.machine}")
