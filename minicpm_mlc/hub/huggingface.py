"""Hugging Face, through huggingface_hub: its cache, tokens, mirrors (HF_ENDPOINT) and offline mode
(HF_HUB_OFFLINE).
"""

from __future__ import annotations

import hashlib
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
from minicpm_mlc.hub.transfer import (
    Counter,
    Interrupted,
    UnreachableError,
    complete,
    fetch_all,
    first_bytes,
    understood,
)

LARGE = 1 << 20  # bytes from which a file is fetched by us
AGAIN = (408, 429, 500, 502, 503, 504)  # statuses that may be another one soon


class HuggingFace:
    """The hub that the user's environment names."""

    def __init__(self) -> None:
        try:
            import httpx2  # noqa: F401  # earlier versions are on another library
            import huggingface_hub
            import huggingface_hub.constants
            import huggingface_hub.errors
        except ImportError:
            raise HubError(
                "Hugging Face is reached through huggingface_hub 2.4 or newer, which is not "
                f"installed: {pip_install('hub')}"
            ) from None
        self._library = huggingface_hub

    @property
    def cache(self) -> Path:
        """Where files are kept."""
        return Path(self._library.constants.HF_HUB_CACHE)

    def listing(self, name: Name) -> Listing:
        """What the repository holds now. Raises HubError, UnreachableError where there is no way
        to the hub.
        """
        with understood(self._library.constants.ENDPOINT), _told(name):
            info = self._library.HfApi().model_info(
                name.repository, revision=name.revision, files_metadata=True
            )
            files = [
                RemoteFile(
                    *(each.rfilename, each.size or 0),
                    *(each.lfs.sha256 if each.lfs else None, each.blob_id),
                )
                for each in info.siblings or ()
            ]
            return Listing(str(info.sha), files)

    def missing(
        self, name: Name, listing: Listing, files: Sequence[RemoteFile]
    ) -> list[RemoteFile]:
        """Those that are not in the cache."""
        find = self._library.try_to_load_from_cache
        return [
            file
            for file in files
            if not isinstance(find(name.repository, file.path, revision=listing.revision), str)
        ]

    def fetch(
        self, name: Name, listing: Listing, files: Sequence[RemoteFile], counter: Counter
    ) -> Path:
        """Brings the files into the cache; their folder. Raises HubError."""
        missing = self.missing(name, listing, files)
        large = [file for file in missing if file.sha256 and file.size >= LARGE]
        with _told(name):
            fetch_all(large, lambda file: self._fetch_blob(name, listing, file, counter), counter)
            folder = self._snapshot(name, files)
        if folder.name != listing.revision:
            raise HubError(f"{name} changed during the download; the same command goes on")
        for file in missing:
            if file not in large:
                counter(file.size)
                _check_small(folder / file.path, file)
        return folder

    def beginning(self, name: Name, listing: Listing, file: RemoteFile, count: int) -> bytes:
        """The first `count` bytes of a file, or all of it; nothing is kept. Raises HubError."""
        url = self._library.hf_hub_url(name.repository, file.path, revision=listing.revision)
        last = min(count, file.size) - 1
        try:
            with _told(name), self._open(name, url, 0, last) as (_, blocks):
                return first_bytes(blocks, count)
        except Interrupted as cut:
            raise cut.reason from cut

    def cached(self, name: Name) -> Path | None:
        """The folder of what was fetched before, without asking the hub."""
        try:
            return Path(
                self._library.snapshot_download(
                    name.repository, revision=name.revision, local_files_only=True
                )
            )
        except self._library.errors.IncompleteSnapshotError as error:
            return Path(error.snapshot_path)
        except (self._library.errors.LocalEntryNotFoundError, ValueError):
            return None

    def _snapshot(self, name: Name, files: Sequence[RemoteFile]) -> Path:
        """The library lays out its cache, and fetches what is small."""
        from huggingface_hub.utils import tqdm

        class Silent(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **(options | {"disable": True}))

        folder = self._library.snapshot_download(
            name.repository,
            revision=name.revision,
            allow_patterns=[_literally(file.path) for file in files],
            tqdm_class=Silent,
        )
        return Path(folder)

    def _fetch_blob(self, name: Name, listing: Listing, file: RemoteFile, counter: Counter) -> None:
        """Puts a large file where the library looks for the blob of this hash."""
        from huggingface_hub.file_download import repo_folder_name

        repository = repo_folder_name(repo_id=name.repository, repo_type="model")
        blob = self.cache / repository / "blobs" / str(file.sha256)
        if blob.exists():
            return counter(file.size)
        blob.parent.mkdir(parents=True, exist_ok=True)
        url = self._library.hf_hub_url(name.repository, file.path, revision=listing.revision)
        partial = blob.with_name(f"{blob.name}.incomplete")
        complete(partial, file, lambda start: self._open(name, url, start), counter)
        partial.replace(blob)

    @contextmanager
    def _open(
        self, name: Name, url: str, start: int, last: int | None = None
    ) -> Iterator[tuple[int, Iterator[bytes]]]:
        import httpx2
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        asked = {
            "Range": f"bytes={start}-{'' if last is None else last}",
            "Accept-Encoding": "identity",
        }
        headers = {**build_hf_headers(), **asked}
        timeout = self._library.constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
                hf_raise_for_status(response)
                yield start if response.status_code == 206 else 0, response.iter_bytes()
        except self._library.errors.HfHubHTTPError as error:
            if error.response.status_code not in AGAIN:
                raise
            raise Interrupted(_http_error(name, error), _retry_after(error.response)) from error
        except httpx2.TransportError as error:
            raise Interrupted(_unreachable(error)) from error


def _literally(path: str) -> str:
    """A pattern that only this path fits."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _check_small(path: Path, file: RemoteFile) -> None:
    """Removes a small file that isn't what git has, blob and name, and raises HubError then."""
    data = path.read_bytes()
    if file.sha256:
        found, expected = hashlib.sha256(data).hexdigest(), file.sha256
    else:
        framed = b"blob %d\0" % len(data) + data
        found = hashlib.sha1(framed, usedforsecurity=False).hexdigest()
        expected = file.git_sha1 or found
    if found != expected:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise HubError(
            f"{file.path} came with hash {found}, expected {expected}: it was damaged on the way, "
            "or the mirror holds another file; the same command fetches it again"
        )


@contextmanager
def _told(name: Name) -> Iterator[None]:
    """What the library raises, as one sentence with the next command."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise UnreachableError("HF_HUB_OFFLINE is set: nothing is asked of the hub") from error
    except (httpx2.TransportError, errors.LocalEntryNotFoundError) as error:
        raise _unreachable(error) from error
    except errors.HfHubHTTPError as error:
        raise _http_error(name, error) from error
    except errors.HFValidationError as error:
        raise HubError(f"{name} is no name of a repository: {shown(error)}") from error


def _unreachable(error: Exception) -> UnreachableError:
    from huggingface_hub import constants

    mirror = " (HF_ENDPOINT)" if "HF_ENDPOINT" in os.environ else ""
    return UnreachableError(f"{constants.ENDPOINT}{mirror} can't be reached ({shown(error)})")


def _http_error(name: Name, error: Any) -> HubError:
    """By the status: what it means there, and what to type."""
    from huggingface_hub import constants, errors

    status = error.response.status_code
    page = f"{constants.ENDPOINT}/{name.repository}"
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{name} asks for its terms to be accepted: open {page}, then hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{name.repository} has no revision {name.revision}; see {page}/tree/main")
    if status in (401, 404) and not isinstance(error, errors.RemoteEntryNotFoundError):
        return HubError(
            f"{constants.ENDPOINT} has no {name.repository}, or it is private: see the spelling "
            "(no folder here is called so either), or log in with hf auth login, or try "
            f"modelscope:{name.repository}"
        )
    if status == 403:
        return HubError(f"{page} may not be read with this token (403); hf auth login with another")
    if status == 429:
        seconds = _retry_after(error.response)
        when = f"in {seconds:.0f} seconds" if seconds else "later"
        return HubError(
            f"{constants.ENDPOINT} refuses more requests for now (429): type the same command "
            f"{when}; hf auth login raises the limit"
        )
    return HubError(
        f"{constants.ENDPOINT} answers {status} for {name.repository}; type the same command later"
    )


def _retry_after(response: Any) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
