"""Are the files of a bundle those of its manifest? Nothing of the bundle runs for the answer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from minicpm_mlc.base.text import human_bytes
from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES, load_cases
from minicpm_mlc.bundle.manifest import CPU_MANIFEST, Bundle, Manifest, check_files, manifest_sha256
from minicpm_mlc.bundle.params import load_draft_ids, load_params


@dataclass(frozen=True)
class FilesReport:
    """What was found whole: `sha256` is the manifest's, `bytes` those of all `files`."""

    name: str
    sha256: str
    files: int
    bytes: int

    def plain(self) -> str:
        """Two lines for a terminal."""
        return (
            f"{self.name}: {self.files} files, {human_bytes(self.bytes)}, are as the manifest says"
            f"\nmanifest SHA-256 {self.sha256}; nothing was run, and nothing says who made it"
        )

    def json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=1)


def verify_files(path: str | Path) -> FilesReport:
    """Hold every file of a bundle for any machine against its manifest, and read all but the
    library. Raises BundleError for the first that is wrong.
    """
    sha256 = manifest_sha256(path)
    bundle = Bundle(Path(path).absolute(), Manifest.load(path))
    check_files(bundle, again=True)
    _read(bundle)
    if CPU_MANIFEST in bundle.manifest.files:
        _read(Bundle(bundle.path, Manifest.load(path, "cpu")))
    sizes = [entry["bytes"] for entry in bundle.manifest.files.values()]
    return FilesReport(bundle.manifest.name, sha256, len(sizes), sum(sizes))


def _read(bundle: Bundle) -> None:
    load_params(bundle)
    load_cases(bundle.path, bundle.named(KERNEL_CASES))
    if bundle.manifest.draft:
        load_draft_ids(bundle)
