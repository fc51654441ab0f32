"""Where the tokens of a measured answer come from: the model, a given text, or a record of what was
once accepted.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.files import read_json_object, write_text
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.speculative.options import Speculation
from minicpm_mlc.runtime_py.speculative.policy import Round
from minicpm_mlc.runtime_py.speculative.steps import Drafter, Steps
from minicpm_mlc.runtime_py.speculative.tree import Draft, Tree

RECORD_ONE = "it is not a record of acceptance; bench --speculate DRAFTER --record writes one"


class ReplayError(MiniCPMError):
    """A record of acceptance that can't be read or replayed."""


class Author(Protocol):
    """Decides the next token of an answer."""

    def next(self, steps: Steps, sampled: int) -> int:
        """The token that goes on, where the model would have said `sampled`."""
        ...


class Model:
    """The model itself."""

    def next(self, steps: Steps, sampled: int) -> int:
        """What it said."""
        return sampled


class Script:
    """A text that is given, whatever the model says."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = iter(token_ids)

    def next(self, steps: Steps, sampled: int) -> int:
        """The text's next token. Raises StopIteration at its end."""
        return next(self._token_ids)


@dataclass
class Record:
    """The trees of a run, as their parents, and the nodes of each that were accepted, the root
    first.
    """

    drafter: str
    trees: list[list[int]] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    draft_depth: int | None = None
    draft_top_k: int | None = None
    source: str = ""

    def add(self, round: Round) -> None:
        """Keeps a tree that was verified, and its path."""
        self.trees.append(list(round.draft.tree.parents))
        self.paths.append(list(round.path))

    @property
    def options(self) -> Speculation:
        """All of a recorded tree is verified again."""
        return Speculation(
            self.drafter, max(map(len, self.trees)), self.draft_depth, self.draft_top_k
        )

    @staticmethod
    def read(path: str | Path) -> Record:
        """Raises ReplayError for another file, SamplingError for options out of range."""
        try:
            record = Record(**read_json_object(Path(path), ReplayError, RECORD_ONE))
        except FileNotFoundError:
            raise ReplayError(
                f"there is no record {path}; bench --speculate DRAFTER --record {path} writes one"
            ) from None
        except TypeError:
            raise ReplayError(f"{path} has other keys; {RECORD_ONE}") from None
        if not _is_whole(record.trees, record.paths):
            raise ReplayError(
                f"{path} is damaged: its paths do not lead through its trees; record it again"
            )
        _ = record.options
        return record

    def write(self, path: str | Path) -> None:
        """As one JSON object."""
        write_text(path, json.dumps(asdict(self)) + "\n")


def _is_whole(trees: Any, paths: Any) -> bool:
    try:
        numbered = all(
            -1 <= parent < node for parents in trees for node, parent in enumerate(parents)
        )
        led = all(
            [parents[node] for node in path] == [-1, *path[:-1]]
            for parents, path in zip(trees, paths, strict=True)
        )
        return bool(trees) and numbered and led
    except (TypeError, IndexError, ValueError):
        return False


class Replay:
    """Plays a record: real drafts are made and dropped for trees of the recorded form, whose paths
    are then followed.

    It is drafter and author in one. The tokens mean nothing; the time of a pass does not depend on
    them.
    """

    def __init__(self, record: Record, drafter: Drafter, vocab_size: int) -> None:
        drafts = [
            Draft(Tree(list(range(len(tree))), tree), np.linspace(1, 0.5, len(tree)))
            for tree in record.trees
        ]
        self._rounds = itertools.cycle(zip(drafts, record.paths, strict=True))
        self._drafter = drafter
        self._vocab_size = vocab_size
        self._path: list[int] = []

    def begin(self) -> None:
        """A call begins."""
        self._drafter.begin()

    def cached(self, model: CachedModel) -> None:
        """Tokens were appended to the model's sequence."""
        self._drafter.cached(model)

    def draft(
        self, history: np.ndarray, depth: int, top_k: int, floor: float, read: int | None = None
    ) -> Draft | None:
        """A tree of the next round's form, as soon as the real drafter has made one."""
        fake, path = next(self._rounds)
        self._drafter.draft(
            history, int(min(depth, fake.tree.depths.max(initial=0))), top_k, 0.0, read
        )
        self._path = path[1:]
        return fake

    def next(self, steps: Steps, sampled: int) -> int:
        """The recorded node's token, or after the path one that no node has."""
        return self._path.pop(0) if self._path else self._vocab_size - 1
