"""How far a bundle's answers are from a reference's on the same tokens: what fewer bits cost.

Both run side by side, a chunk of tokens at a time, so that memory holds the logits of one chunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.base.text import decode_text, human_bytes, markdown_table, plain_table
from minicpm_mlc.bench.accepted import accept_length
from minicpm_mlc.bench.divergence import Comparison, TextQuality
from minicpm_mlc.bench.operators import records_of
from minicpm_mlc.bundle.manifest import MANIFEST, read_bundle
from minicpm_mlc.ops.linear import Linear
from minicpm_mlc.runtime_py.engine import Engine

HELD_OUT = Path(__file__).with_name("held_out.txt")  # in no calibration text of ours
CHUNK = 256  # tokens at a time
TOKENS = 2048  # of each text


class QualityError(MiniCPMError):
    """Bundles or texts that can't be compared."""


class Watched:
    """A bundle whose `answers` are taken together with its residual stream."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.streams: list[np.ndarray] = []  # of the last chunk, behind each layer
        records = records_of(engine.path).items()
        self._adding = {name for name, op in records if isinstance(op, Linear) and op.residual}

    def answers(self, ids: Sequence[int], chunk: int) -> Iterator[np.ndarray]:
        """Logits by chunk (an Answers)."""
        library = self.engine.library.local
        assert library, "the residual stream is watched in this process alone"
        added: list[np.ndarray] = []

        def report(_function: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
            if not before and name in self._adding:
                added.append(library.memory.array(args[-1]).copy())
            return 0  # run the function

        layers = self.engine.manifest.model["num_layers"]
        library.instrument(report)
        try:
            for logits in self.engine.logits_by_chunk(ids, chunk):
                self.streams = added[len(added) // layers - 1 :: len(added) // layers]
                yield logits
                added.clear()
        finally:
            library.instrument(None)


@dataclass
class LayerErrors:
    """Squared errors of the residual stream behind each layer, relative to its size, summed over
    tokens.
    """

    sums: np.ndarray | None = None
    tokens: int = 0

    def add(self, own: list[np.ndarray], exact: list[np.ndarray]) -> None:
        """The streams of a chunk behind every layer, float32 [rows, hidden]."""
        lost = np.array([_lost(*pair) for pair in zip(own, exact, strict=True)])
        self.sums = lost if self.sums is None else self.sums + lost
        self.tokens += len(own[0])

    def roots(self) -> list[float]:
        """The root of each layer's mean."""
        return [] if self.sums is None else np.sqrt(self.sums / self.tokens).tolist()


def _lost(own: np.ndarray, exact: np.ndarray) -> float:
    """The sum over tokens of squared errors relative to the stream's square."""
    exact = exact.astype(np.float64)
    return float((((own - exact) ** 2).sum(1) / (exact**2).sum(1)).sum())


@dataclass(frozen=True)
class QualityReport:
    """A bundle beside a reference. `layers`: the relative error of the residual stream behind each
    layer, of all texts. `accept_lengths`: of the two draft heads, None where there is none.
    """

    bundle: str
    reference: str
    scheme: str
    weights: int  # bytes
    texts: list[TextQuality]
    layers: list[float] = field(default_factory=list)
    accept_lengths: tuple[float | None, float | None] = (None, None)

    def json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=1)

    def plain(self) -> str:
        """For a terminal."""
        return "\n\n".join([self._head(), plain_table(self._cells()), self._lines()])

    def markdown(self) -> str:
        """The texts as a Markdown table."""
        return "\n\n".join([self._head(), markdown_table(self._cells()), self._lines()])

    def _head(self) -> str:
        return f"{self.bundle} ({self.scheme}, {human_bytes(self.weights)}) beside {self.reference}"

    def _cells(self) -> list[list[str]]:
        head = ["text", "tokens", "KL", "same token", "perplexity", "of the reference"]
        return [head, *map(_cells, self.texts)]

    def _lines(self) -> str:
        shown = " ".join(f"{100 * error:.2g}" for error in self.layers)
        told = [f"error of the residual stream behind each layer, %: {shown}"]
        if any(self.accept_lengths):
            own, exact = ("no head" if n is None else f"{n:.3f}" for n in self.accept_lengths)
            told.append(f"tokens a verified draft brings: {own}, of the reference {exact}")
        return "\n".join(told)


def _cells(row: TextQuality) -> list[str]:
    perplexities = [f"{value:.3f}" for value in (row.perplexity, row.reference_perplexity)]
    counted = [f"{row.tokens:,}", f"{row.divergence:.4f}", f"{row.agreement:.1%}"]
    return [row.text, *counted, *perplexities]


def bench_quality(
    bundle: str | Path,
    reference: str | Path,
    texts: Sequence[str | Path] = (),
    tokens: int = TOKENS,
    threads: int | None = None,
    attention: str = "auto",
    draft: str | Path | None = None,
    progress: Progress = no_progress,
    say: Callable[[str], object] = lambda note: None,
) -> QualityReport:
    """A bundle beside `reference`: a bundle, or a checkpoint that is compiled to f32 for this, with
    the head `draft` if it is given. Both attend by `attention`. Raises MiniCPMError.
    """
    read_bundle(bundle)  # before the reference is compiled for minutes
    read = read_texts([Path(text) for text in texts])
    with exact_bundle(Path(reference), tokens, draft, progress, say) as path:
        options: dict[str, Any] = {"threads": threads, "attention": attention, "context": tokens}
        with Engine(bundle, **options) as own, Engine(path, **options) as exact:
            report = measure_quality(own, exact, read, tokens, progress)
    return replace(report, bundle=str(bundle), reference=str(reference))


@contextmanager
def exact_bundle(
    reference: Path,
    tokens: int,
    draft: str | Path | None = None,
    progress: Progress = no_progress,
    say: Callable[[str], object] = lambda note: None,
) -> Iterator[Path]:
    """The bundle itself, or the checkpoint's in f32 in a temporary folder. Raises QualityError for
    a draft head beside a bundle.
    """
    if (reference / MANIFEST).is_file():
        if draft:
            raise QualityError(
                f"--draft {draft}: {reference} is a bundle, which has its own draft head or none; "
                "leave --draft out, or give --reference the checkpoint"
            )
        yield reference
        return
    from minicpm_mlc.compile import compile_model  # imports TVM

    with TemporaryDirectory(prefix="minicpm-mlc-quality-") as folder:
        say(f"{reference}: compiling it to f32 in {folder}, for this run only")
        out = Path(folder) / "f32"
        options: dict[str, Any] = {"scheme": "f32", "context": tokens, "draft": draft}
        compile_model(reference, out, **options, progress=progress)
        yield out


def read_texts(paths: Sequence[Path]) -> dict[str, str]:
    """The texts by their files' names; the shipped one if there are none. Raises QualityError."""
    found = {}
    for path in paths or [HELD_OUT]:
        try:
            found[path.name] = decode_text(path.read_bytes())
        except OSError as error:
            why = error.strerror or error
            raise QualityError(f"--text {path}: can't be read ({why}); give a file") from None
    return found


def token_ids(engine: Engine, name: str, text: str, most: int) -> list[int]:
    """The first tokens of a text. Raises QualityError for fewer than two."""
    ids = engine.tokenize(text)[:most]
    if len(ids) < 2:
        raise QualityError(f"{name} has {len(ids)} tokens, expected 2 or more; give more text")
    return ids


def measure_quality(
    own: Engine,
    exact: Engine,
    texts: dict[str, str],
    tokens: int = TOKENS,
    progress: Progress = no_progress,
) -> QualityReport:
    """Two bundles of one model over the first `tokens` of each text.

    Raises QualityError where their vocabularies, layers or widths differ.
    """
    _check_same_model(own, exact)
    watched, errors = (Watched(own), Watched(exact)), LayerErrors()
    rows, read, chunk = [], [], min(CHUNK, own.prefill_chunk, exact.prefill_chunk)
    for place, (name, text) in enumerate(texts.items()):
        progress("comparing", place, len(texts))
        ids = token_ids(own, name, text, min(tokens, own.context, exact.context))
        read.append(ids)
        comparison = Comparison(name, ids)
        for pair in zip(*(side.answers(ids, chunk) for side in watched), strict=True):
            comparison.add(*pair)
            errors.add(*(side.streams for side in watched))
        rows.append(comparison.result())
    progress("comparing", len(texts), len(texts))
    manifest = own.manifest
    return QualityReport(
        str(own.path),
        str(exact.path),
        manifest.scheme,
        manifest.memory["weights"],
        rows,
        errors.roots(),
        (accept_length(own, read), accept_length(exact, read)),
    )


def _check_same_model(own: Engine, exact: Engine) -> None:
    for key in ("vocab_size", "num_layers", "hidden_size"):
        seen, expected = own.manifest.model[key], exact.manifest.model[key]
        if seen != expected:
            raise QualityError(
                f"{own.path} has {key} {seen} and the reference {expected}; give --reference the "
                "checkpoint that it was compiled from, or a bundle of that"
            )
