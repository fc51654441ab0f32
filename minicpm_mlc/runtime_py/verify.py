"""Is this bundle right on this device? Every kernel against its stored cases, then a short
generation against itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import BundleError, EngineError
from minicpm_mlc.base.files import read_json_object
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.base.text import plain_table
from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES, load_cases
from minicpm_mlc.bundle.manifest import Bundle, Manifest
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.kernel_check import Checked
from minicpm_mlc.runtime_py.local_machine import LocalMachine
from minicpm_mlc.runtime_py.paged_cache import PagedCache
from minicpm_mlc.runtime_py.protocols import Library, Machine

PROMPT, NEW = 130, 16  # tokens: three pages, which sparse attention scores
# NMSE of the logits of decoding against those of one prefill, which sums in another order
GENERATION_LIMIT = 1e-4
HUGE = 1e5  # a logit of no trained model; tokens then hang on the last bits


@dataclass(frozen=True)
class OperatorResult:
    """The cases of one operator: the worst NMSE of all, its limit, and the seconds of all its
    calls.
    """

    operator: str
    cases: int
    nmse: float
    limit: float
    seconds: float
    passed: bool


@dataclass(frozen=True)
class VerifyReport:
    """`tokens` are the greedy ones, per gear; `expected` those of another device's report, where
    one was given. `logits` says, per gear, how the generation's are no trained model's.
    """

    name: str
    device: str
    rows: list[OperatorResult]
    tokens: dict[str, list[int]]
    expected: dict[str, list[int]] | None = None
    logits: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """The operators, or gears of the generation, that are wrong."""
        wrong = [row.operator for row in self.rows if not row.passed]
        return wrong + [
            f"tokens, {gear}"
            for gear, ids in (self.expected or {}).items()
            if self.tokens.get(gear) != ids
        ]

    def raise_if_failed(self) -> None:
        """Raises BundleError naming what is wrong: the weights, where all kernels are right and the
        logits are no model's; else the device.
        """
        at_fault = {f"generation, {gear}" for gear in self.logits}
        at_fault |= {f"tokens, {gear}" for gear in self.logits}
        if self.failed and at_fault.issuperset(self.failed):
            raise BundleError(
                f"{self.name}: every kernel is right on {self.device}, but the model gives "
                f"{' and '.join(sorted(set(self.logits.values())))}, so its weights are at fault; "
                "compile a sound checkpoint: minicpm-mlc compile"
            )
        if self.failed:
            raise BundleError(
                f"{self.name} computes wrong on {self.device}: {', '.join(self.failed)}; "
                "update the device's driver, or compile for another device: minicpm-mlc devices"
            )

    def plain(self) -> str:
        """A table for a terminal."""
        cells = [["operator", "cases", "NMSE", "limit", "ms", ""]]
        for row in self.rows:
            numbers = [
                f"{row.cases}",
                f"{row.nmse:.1e}",
                f"{row.limit:.0e}",
                f"{row.seconds * 1e3:.2f}",
            ]
            cells.append([row.operator, *numbers, "ok" if row.passed else "WRONG"])
        match = (
            ""
            if self.expected is None
            else f"\ntokens as expected: {'yes' if self.tokens == self.expected else 'NO'}"
        )
        return f"{self.name} on {self.device}\n\n{plain_table(cells)}{match}"

    def json(self) -> str:
        """One JSON object, which `expect` of another run reads."""
        return json.dumps(asdict(self) | {"failed": self.failed}, indent=1)


def verify_bundle(
    path: str | Path,
    *,
    threads: int | None = None,
    expect: str | Path | None = None,
    remote: Machine | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
) -> VerifyReport:
    """Run a bundle's kernel cases and a greedy generation of 16 tokens in each gear on the bundle's
    device.

    `expect` is the JSON report of the same model on another device, whose tokens this one must
    give; `threads` None means the physical cores; `remote` is another machine, None this
    one; `device` that of the library, where the bundle holds two.
    Raises BundleError for a bundle that doesn't load, or a kernel that doesn't run.
    """
    machine: Machine = remote or LocalMachine()
    bundle = machine.read_bundle(path, device)
    expected = None if expect is None else _expected_tokens(Path(expect))
    library = machine.open_library(bundle, threads or machine.cores)
    return verify_library(library, bundle, expected, progress)


def verify_library(
    library: Library,
    bundle: Bundle,
    expected: dict[str, list[int]] | None = None,
    progress: Progress = no_progress,
) -> VerifyReport:
    """The same for a library that is open already."""
    cases = load_cases(bundle.path, bundle.named(KERNEL_CASES))
    checked = []
    for done, case in enumerate(cases, 1):
        checked.append(library.check(case))
        progress("kernels", done, len(cases))
    rows = _rows(checked)
    tokens: dict[str, list[int]] = {}
    strange: dict[str, str] = {}
    for gear, model in _models(library, bundle.manifest):
        progress("generation", len(tokens), 2)
        start = time.perf_counter()
        logits, nmse, tokens[gear] = _generation(model, bundle.manifest)
        if what := _strange(logits):
            strange[gear] = what
        seconds = time.perf_counter() - start
        rows.append(
            OperatorResult(
                f"generation, {gear}", 1, nmse, GENERATION_LIMIT, seconds, nmse <= GENERATION_LIMIT
            )
        )
    progress("generation", 2, 2)
    name, device = bundle.manifest.name, library.device_identity
    return VerifyReport(name, device, rows, tokens, expected, strange)


def _rows(checked: list[Checked]) -> list[OperatorResult]:
    rows = []
    for operator, group in groupby(sorted(checked, key=lambda c: c.operator), lambda c: c.operator):
        cases = list(group)
        worst = max(cases, key=lambda c: c.nmse if c.nmse == c.nmse else np.inf)
        passed = all(case.passed for case in cases)
        seconds = sum(case.seconds for case in cases)
        rows.append(OperatorResult(operator, len(cases), worst.nmse, worst.limit, seconds, passed))
    return rows


def _models(library: Library, manifest: Manifest) -> Iterator[tuple[str, CachedModel]]:
    gears = ["dense", "sparse"] if manifest.dense_len is not None else ["dense"]
    for gear in gears:
        cache = PagedCache(library, PROMPT + NEW)
        yield gear, CachedModel(cache, PROMPT + NEW, Gears.of(manifest, gear))


def _strange(logits: np.ndarray) -> str | None:
    """How logits are those of no trained model, in words."""
    largest = np.abs(logits).max()
    if not np.isfinite(largest):
        return "logits that are not numbers (NaN or infinite)"
    if not largest:
        return "logits that are all 0 (from weights of zeros, or too large ones)"
    return f"logits as large as {largest:.1e}" if largest > HUGE else None


def _generation(model: CachedModel, manifest: Manifest) -> tuple[np.ndarray, float, list[int]]:
    """The logits of 16 decoded tokens float64 [16, vocab], their NMSE against a prefill of the same
    tokens, NaN where those are all zero, and the tokens.
    """
    vocab = manifest.model["vocab_size"]
    tokens = [(7919 * i) % vocab for i in range(1, PROMPT + 1)]
    *_, (_, logits) = model.prefill(tokens, manifest.prefill_chunk)
    decoded = [logits[-1].copy()]
    for _ in range(NEW - 1):
        tokens.append(int(decoded[-1].argmax()))
        decoded.append(model.decode(tokens[-1]).copy())
    model.sequence.truncate(0)
    chunks = [
        rows.copy() for _, rows in model.prefill(tokens, manifest.prefill_chunk, all_rows=True)
    ]
    once = np.concatenate(chunks)[PROMPT - 1 :].astype(np.float64)
    stepwise = np.array(decoded, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        nmse = float(((stepwise - once) ** 2).sum() / (once**2).sum())
    return stepwise, nmse, [*tokens[PROMPT:], int(decoded[-1].argmax())]


def _expected_tokens(path: Path) -> dict[str, list[int]]:
    advice = "make a report: minicpm-mlc verify BUNDLE --json"
    try:
        tokens = read_json_object(path, EngineError, advice)["tokens"]
        return {str(gear): [int(i) for i in ids] for gear, ids in tokens.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise EngineError(
            f"{path} is no report of this command ({type(error).__name__}: {error!s:.200}); "
            f"{advice}"
        ) from None
