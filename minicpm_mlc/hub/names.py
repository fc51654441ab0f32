"""What a user calls a model: a path, or a repository of a hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from minicpm_mlc.base.errors import HubError
from minicpm_mlc.base.text import quoted

HUGGING_FACE = "hf"
MODELSCOPE = "modelscope"
FORM = "[hf:|modelscope:]ORG/NAME[@REVISION][:QUANTISATION]"
EXAMPLES = "openbmb/MiniCPM4.1-8B, modelscope:OpenBMB/MiniCPM4.1-8B"
_WORD = r"[A-Za-z0-9_][\w.-]{0,95}"  # neither hub has longer ones
_NAME = re.compile(
    rf"(?:(?P<hub>hf|modelscope):)?(?P<repository>{_WORD}/{_WORD})"
    r"(?:@(?P<revision>[\w./-]{1,128}))?(?::(?P<choice>[\w./-]{1,200}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Name:
    """A repository of a hub. `choice`: one of several forms in it, a quantisation, a file or a
    folder; `revision`: a branch, tag or commit, None for the hub's default.
    """

    hub: str
    repository: str
    revision: str | None = None
    choice: str | None = None

    def __str__(self) -> str:
        hub = "" if self.hub == HUGGING_FACE else f"{self.hub}:"
        revision = f"@{self.revision}" if self.revision else ""
        return f"{hub}{self.repository}{revision}{f':{self.choice}' if self.choice else ''}"


def read_name(text: str) -> Name | None:
    """The repository that a text names, whatever lies on this machine; None for other texts."""
    found = _NAME.fullmatch(text)
    return found and Name(**(found.groupdict() | {"hub": found["hub"] or HUGGING_FACE}))


def parse_name(source: str) -> Name | None:
    """The repository that `source` names. None for a path: what lies on this machine always wins.

    Raises HubError where a hub is given and no repository follows.
    """
    if Path(source).exists():
        return None
    if name := read_name(source):
        return name
    if source.startswith((f"{HUGGING_FACE}:", f"{MODELSCOPE}:")):
        raise HubError(f"{quoted(source)} is no name; give {FORM}, for example {EXAMPLES}")
    return None
