"""Files that this process has mapped: what is written into them in place changes under a call."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path

from minicpm_mlc.base.errors import EngineError


class MappedFiles:
    """Remembers how files were. One that was replaced or removed by name does no harm: the map
    keeps the old one. One that was cut short would end the process with SIGBUS at the next read.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """To be made before the files are mapped. Raises OSError."""
        self._before = {path: os.stat(path) for path in paths}
        self._looked = -math.inf

    def check(self, recent: float = 0.0) -> None:
        """Raises EngineError where a file was written into since. Nothing is done where they were
        found as they should be within the last `recent` seconds.
        """
        if time.monotonic() - self._looked < recent:
            return
        for path, before in self._before.items():
            try:
                now = os.stat(path)
            except OSError:
                continue
            same_file = (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino)
            size_and_time = (before.st_size, before.st_mtime_ns)
            if same_file and (now.st_size, now.st_mtime_ns) != size_and_time:
                raise EngineError(
                    f"{path} was changed while it is in use; open the bundle again, and put a new "
                    "one in its place by renaming, not by writing into its files"
                )
        self._looked = time.monotonic()
