"""A model on a hub, described before it is downloaded: its files' sizes, and its config alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minicpm_mlc.base.errors import CheckpointError, HubError
from minicpm_mlc.compile.checkpoint.gguf import open_gguf
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.registry import read_config_folder
from minicpm_mlc.hub.listing import Listing
from minicpm_mlc.hub.names import Name
from minicpm_mlc.hub.needed import CONFIG, GGUF, Needed, needed_files
from minicpm_mlc.hub.pull import Hub, open_hub

HEADERS = (8 << 20, 64 << 20)  # bytes of a GGUF file in which its metadata lies, vocabulary and all


def remote_config(name: Name) -> tuple[ModelConfig, Listing, Needed]:
    """The config of a model, what its repository holds, and what a download would bring.

    Raises HubError, and ConfigError or CheckpointError for a model that isn't read.
    """
    hub = open_hub(name)
    listing = hub.listing(name)
    needed = needed_files(listing.files, name.choice, str(name))
    for count in HEADERS:
        with _stand_in(hub, name, listing, needed, count) as path:
            try:
                config = open_gguf(path).config if path.is_file() else read_config_folder(path)
            except CheckpointError:
                if path.is_file() and count < HEADERS[-1]:
                    continue  # its header may go on
                raise
            return config, listing, needed
    raise AssertionError("the last header is read or refused")


@contextmanager
def _stand_in(
    hub: Hub, name: Name, listing: Listing, needed: Needed, header: int
) -> Iterator[Path]:
    """What is compiled, without its weights: a folder with the config, or a GGUF file of the same
    size whose tensors are a hole.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if needed.main.endswith(GGUF):
            file = next(file for file in needed.files if file.path == needed.main)
            path = Path(temporary) / file.name
            path.write_bytes(hub.beginning(name, listing, file, header))
            with open(path, "r+b") as out:
                out.truncate(file.size)
        else:
            files = {file.path: file for file in needed.files}
            config = f"{needed.main}/{CONFIG}".lstrip("/")
            if config not in files:
                raise HubError(f"{name} has no {CONFIG}, as adapters have none: inspect its base")
            path = Path(temporary) / name.repository.rpartition("/")[2]
            path.mkdir()
            content = hub.beginning(name, listing, files[config], header)
            (path / CONFIG).write_bytes(content)
        yield path
