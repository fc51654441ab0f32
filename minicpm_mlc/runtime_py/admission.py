"""What the user says about a bundle that comes from elsewhere, before anything of it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.manifest import manifest_sha256
from minicpm_mlc.bundle.trust import allow, is_trusted, trust


def admit(
    bundle: str | Path,
    sha256: str | Collection[str] | None = None,
    trusted: bool = False,
    ask: Callable[[str], bool] | None = None,
) -> None:
    """Let a bundle run, if the user wants it; what isn't admitted is refused where it is opened.

    `sha256`: the manifests that may run, no others. `trusted`: from now on. `ask` is given the
    bundle's name and SHA-256, and a yes is for good too. Raises BundleError for a folder that is no
    bundle, and for another manifest than `sha256` says.
    """
    seen = manifest_sha256(bundle)
    if sha256 is not None:
        pinned = [sha256] if isinstance(sha256, str) else sha256
        if seen not in {each.lower() for each in pinned}:
            expected = " or ".join(pinned) or "none"
            raise BundleError(
                f"{bundle} has a manifest with the SHA-256 {seen}, expected {expected}; "
                "it is another bundle, or was changed: get it again from its maker"
            )
        allow(seen)
    elif trusted or (ask and not is_trusted(seen) and ask(f"{bundle} (SHA-256 {seen})")):
        trust(seen)
