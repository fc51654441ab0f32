"""ModelScope, through modelscope_hub: its cache, token and mirrors (MODELSCOPE_CACHE,
MODELSCOPE_API_TOKEN, MODELSCOPE_ENDPOINT). It resumes files and checks their SHA-256 by itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import HubError
from minicpm_mlc.base.installed import pip_install
from minicpm_mlc.base.text import shown
from minicpm_mlc.hub.listing import Listing, RemoteFile
from minicpm_mlc.hub.names import Name
from minicpm_mlc.hub.transfer import Counter, UnreachableError, first_bytes, understood

KIND = "model"
MAIN = "master"  # its default branch


class ModelScope:
    """The hub that the user's environment names."""

    def __init__(self) -> None:
        # tqdm reads this when it is imported: a bar for each file would lie across ours
        quiet = "TQDM_DISABLE" not in os.environ
        os.environ.setdefault("TQDM_DISABLE", "1")
        try:
            import modelscope_hub
        except ImportError:
            raise HubError(
                "ModelScope is reached through modelscope-hub, which is not installed: "
                f"{pip_install('modelscope')}"
            ) from None
        finally:
            if quiet:
                del os.environ["TQDM_DISABLE"]
        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)  # what fails is raised too
        self._library = modelscope_hub
        self._config = modelscope_hub.HubConfig()
        self._api = modelscope_hub.HubApi(self._config)

    @property
    def cache(self) -> Path:
        """Where files are kept."""
        return Path(self._config.cache_dir)

    def listing(self, name: Name) -> Listing:
        """What the repository holds now. Raises HubError, UnreachableError where there is no way
        to the hub.
        """
        with understood(str(self._config.endpoint)), _told(name):
            files = self._api.list_repo_files(name.repository, KIND, revision=name.revision or MAIN)
        listed = [RemoteFile(each.path, each.size, each.sha256) for each in files]
        return Listing(
            name.revision or MAIN,
            [file for file, each in zip(listed, files, strict=True) if not each.is_dir],
        )

    def missing(
        self, name: Name, listing: Listing, files: Sequence[RemoteFile]
    ) -> list[RemoteFile]:
        """Those that are not in the cache with this size."""
        return [file for file in files if not self._is_cached(name, listing, file)]

    def _is_cached(self, name: Name, listing: Listing, file: RemoteFile) -> bool:
        try:
            path = self._api.download_file(
                name.repository,
                KIND,
                file.path,
                revision=listing.revision,
                local_files_only=True,
            )
        except self._library.CacheNotFound:
            return False
        return path.stat().st_size == file.size

    def fetch(
        self, name: Name, listing: Listing, files: Sequence[RemoteFile], counter: Counter
    ) -> Path:
        """Brings the files into the cache; their folder. Raises HubError."""
        wanted = [
            {"Path": file.path, "Size": file.size, "Sha256": file.sha256, "Type": "blob"}
            for file in files
        ]
        with _told(name):
            return self._api.download_repo(
                name.repository,
                KIND,
                revision=listing.revision,
                file_list=wanted,
                progress_callbacks=[_callback(counter)],
            )

    def beginning(self, name: Name, listing: Listing, file: RemoteFile, count: int) -> bytes:
        """The first `count` bytes of a file, or all of it; nothing is kept. Raises HubError."""
        place = (name.repository, KIND, file.path, listing.revision)
        asked = {"Range": f"bytes=0-{min(count, file.size) - 1}"}
        with _told(name), self._api.legacy.download_stream(*place, headers=asked) as response:
            return first_bytes(response.iter_content(1 << 16), count)

    def cached(self, name: Name) -> Path | None:
        """The folder of what was fetched before, without asking the hub."""
        try:
            return self._api.download_repo(
                name.repository, KIND, revision=name.revision, local_files_only=True
            )
        except self._library.CacheNotFound:
            return None


def _callback(counter: Counter) -> Any:
    """What the library makes for each file, to tell the bytes that came."""
    from modelscope_hub import ProgressCallback

    class Counted(ProgressCallback):
        def update(self, size: int) -> None:
            counter(size)

    return Counted


@contextmanager
def _told(name: Name) -> Iterator[None]:
    """What the library raises, as one sentence with the next command."""
    from modelscope_hub import errors

    try:
        yield
    except errors.FileDownloadError as error:
        failed, reason = next(iter(error.failed_files.items()))
        raise _explained(name, reason, f"{failed}: ") from error
    except errors.HubError as error:
        raise _explained(name, error) from error


def _explained(name: Name, error: BaseException, where: str = "") -> BaseException:
    from modelscope_hub import HubConfig, errors

    hub = f"{where}{HubConfig().endpoint}"
    if isinstance(error, errors.AuthenticationError):
        return HubError(f"{hub} doesn't take your token (401); log in: modelscope login")
    if isinstance(error, errors.PermissionDeniedError):
        return HubError(f"{hub}: {name} may not be read with your token (403): modelscope login")
    if isinstance(error, errors.NotExistError):
        return HubError(
            f"{hub} has no {name.repository}{f'@{name.revision}' if name.revision else ''}, or it "
            "is private: see the spelling, or log in with modelscope login"
        )
    if isinstance(error, errors.RateLimitError):
        return HubError(f"{hub} refuses more requests for now (429); type the same command later")
    if isinstance(error, errors.FileIntegrityError):
        return HubError(
            f"{hub} sent another file than it lists ({shown(error)}): it was damaged on the way, "
            "or the mirror is out of date; the same command fetches it again"
        )
    if isinstance(error, errors.NetworkError):
        mirror = " (MODELSCOPE_ENDPOINT)" if "MODELSCOPE_ENDPOINT" in os.environ else ""
        return UnreachableError(f"{hub}{mirror} can't be reached ({shown(error)})")
    if isinstance(error, errors.HubError):
        return HubError(f"{hub}: {shown(error)}; type the same command later")
    return error
