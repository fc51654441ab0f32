"""What the engine needs of a machine and of a bundle's library there; both may be elsewhere."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from minicpm_mlc.base.errors import ContextError, EngineError
from minicpm_mlc.bundle.kernel_cases import Case
from minicpm_mlc.bundle.manifest import MAX_DECODE_SEQUENCES, Bundle, Manifest
from minicpm_mlc.runtime_py.outputs import Decoded, Outputs

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.device_pool import DevicePool
    from minicpm_mlc.runtime_py.kernel_check import Checked
    from minicpm_mlc.runtime_py.library import Pools
    from minicpm_mlc.runtime_py.memory import Memory
    from minicpm_mlc.runtime_py.spent import Spent

COMMIT = "commit"  # the one function that takes no weights and gives nothing back
# in the library of a bundle with a draft head
DRAFT_EXTEND, DRAFT_STEP, DRAFT_CHOOSE, DRAFT_LEVEL = DRAFT_CALLS = (
    "draft_extend",
    "draft_step",
    "draft_choose",
    "draft_level",
)
DRAFT_TREE = "draft_tree"  # a draft from root to tree: `draft_extend`, then the last two by turns
# what can be asked of a library
CALLS = ("prefill", "decode", "verify", COMMIT, DRAFT_EXTEND, DRAFT_STEP, DRAFT_TREE)
NO_ANCESTORS = np.zeros((1, 2), np.int32)


class Machine(Protocol):
    """A machine that runs bundles: this one (LocalMachine) or another one (rpc.RemoteMachine)."""

    @property
    def cores(self) -> int:
        """Its physical cores."""
        ...

    @property
    def options(self) -> str:
        """The command line's options that name it, with a space before them; empty for this one."""
        ...

    @property
    def shares_memory(self) -> bool:
        """Whether this process can read and write the tensors that lie in its host memory."""
        ...

    def free_memory(self, device: str) -> int:
        """Bytes of a device's memory that a bundle can take. Raises BundleError when it is
        missing.
        """
        ...

    def read_bundle(self, path: str | Path, device: str | None = None) -> Bundle:
        """A bundle of this machine's files that can run there; `device` is that of its library,
        where it holds two. Raises BundleError.
        """
        ...

    def open_library(self, bundle: Bundle, threads: int) -> Library:
        """The compiled functions of a bundle, there. Raises BundleError where they don't load."""
        ...


class KernelCalls(Protocol):
    """Kernels to be called alone, and where their arguments lie."""

    memory: Memory

    def kernel(self, name: str) -> Callable[..., None]:
        """One kernel of the library, to be called alone on tensors of `memory`."""
        ...


class KernelAccess(KernelCalls, Protocol):
    """What only a library in this process has: its memory, its kernels alone, its calls watched and
    timed.
    """

    spent: Spent  # seconds of its calls
    # the compiled ones by name, dense and, where there is one, sparse; they may be replaced
    functions: dict[str, list[Callable[..., Any]]]

    @property
    def steps_note(self) -> str | None:
        """How a GPU's decode steps are launched; None of a CPU's."""
        ...

    def instrument(self, report: Callable[..., int] | None) -> None:
        """Have report(function, name, before, result, *arguments) -> 0 called around every
        operator; None ends it.
        """

    def waited(self, measure: bool) -> float:
        """Seconds, since the last call, that a thread had no task in an operator that ran: a mean
        over the threads. `measure`: whether they are measured from now on.
        """
        ...


class Library(Protocol):
    """A bundle's compiled functions and the state that they work on, wherever that lies.

    A class that inherits from it defines the abstract methods; the typed ones call `run`. Token
    ids, positions, slots and page tables are int32; slot s of a sequence is in the page
    page_table[s // page_size] of every pool. Every call raises DeviceError where the device fails,
    and EngineError where another machine can't be reached.
    """

    manifest: Manifest
    vocab_size: int
    device_name: str
    device_identity: str  # the name with the driver's version
    draft_ids: np.ndarray  # int32: the token of each id of the draft head, where there is one

    @property
    @abstractmethod
    def local(self) -> KernelAccess | None:
        """What more can be done with it in this process; None where it is on another machine."""

    @abstractmethod
    def new_pools(self, num_pages: int) -> Pools:
        """Pools of `num_pages` pages. The memory is reserved; the system commits it as pages are
        written.
        """

    @abstractmethod
    def new_draft_pools(self, num_pages: int) -> Pools:
        """The same for the draft head's layer."""

    def pool_arrays(self, pools: Pools) -> list[np.ndarray | DevicePool]:
        """The pools' memory, each [pages, ...], whose pages are read and written by lists of their
        numbers. Raises EngineError where this process has no part in it.
        """
        raise EngineError(
            f"what {self.device_name} has computed can't be read here; save it on that machine"
        )

    @abstractmethod
    def check(self, case: Case, timed: bool = True) -> Checked:
        """Run a kernel case. Raises BundleError if the kernel doesn't run at all."""

    @abstractmethod
    def run(
        self, kind: str, rows: Sequence[np.ndarray], pools: Pools, sparse: bool = False
    ) -> list[np.ndarray]:
        """One of CALLS with these arrays. Returns what the compiled function returns, as arrays; of
        COMMIT nothing, of DRAFT_TREE the tree.
        """

    def prefill(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
        pools: Pools,
        sparse: bool = False,
    ) -> Outputs:
        """One chunk of one sequence: token_ids, positions and slots [n], page_table [p].

        Returns the logits of the m rows that `logit_rows` [m] names, and the features of all n.
        Raises ContextError for more rows than the library's chunk.
        """
        if len(token_ids) > self.manifest.prefill_chunk:
            raise ContextError(
                f"a chunk of {len(token_ids)} rows; the library holds {self.manifest.prefill_chunk}"
            )
        rows = (token_ids, positions, slots, page_table[None, :], logit_rows)
        return self._outputs(self.run("prefill", rows, pools, sparse))

    def decode(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        page_tables: np.ndarray,
        pools: Pools,
        sparse: bool = False,
    ) -> Decoded:
        """One row of each of b sequences: token_ids, positions and slots [b], page_tables [b, p].

        Raises ContextError for more sequences than the library holds.
        """
        if len(token_ids) > MAX_DECODE_SEQUENCES:
            raise ContextError(
                f"{len(token_ids)} sequences at once; the library holds {MAX_DECODE_SEQUENCES}"
            )
        return self._decoded("decode", (token_ids, positions, slots, page_tables), pools, sparse)

    def verify(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        base: np.ndarray,
        page_table: np.ndarray,
        ancestors: np.ndarray,
        pools: Pools,
        sparse: bool = False,
    ) -> Decoded:
        """n nodes of a token tree whose slots begin at base [1]: one row each, page_table [p].

        `slots` are contiguous. A node sees the slots before the base, and of the tree those whose
        bits (slot - base) its mask, int32 [n, 2], low word first, has.
        """
        rows = (token_ids, positions, slots, base, page_table[None, :], ancestors)
        return self._decoded("verify", rows, pools, sparse)

    def commit(
        self, sources: np.ndarray, slots: np.ndarray, page_table: np.ndarray, pools: Pools
    ) -> None:
        """Moves the cached rows at `sources` [n], ascending, to `slots` [n], contiguous and none
        after its source.
        """
        self.run(COMMIT, (sources, slots, page_table[None, :]), pools)

    def draft_extend(
        self,
        token_ids: np.ndarray,
        features: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        page_table: np.ndarray,
        logit_rows: np.ndarray,
        pools: Pools,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The draft head over rows of one sequence, each the base's features float32 [n, F] and the
        token after it.

        Returns the likeliest ids of the head's vocabulary int32 [m, k], the likeliest first, their
        log-probabilities float32 [m, k], and hidden states float32 [m, H], of the rows named.
        """
        rows = (token_ids, features, positions, slots, page_table[None, :], logit_rows)
        ids, values, hidden = self.run(DRAFT_EXTEND, rows, pools)
        return ids, values, hidden

    def draft_step(
        self,
        token_ids: np.ndarray,
        hidden: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        base: np.ndarray,
        page_table: np.ndarray,
        ancestors: np.ndarray,
        pools: Pools,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The draft head over nodes of a draft tree that begins at slot base [1]; `hidden` float32
        [n, H] are its own.

        A node sees what `verify` lets it see. Returns what draft_extend does, of all nodes.
        """
        rows = (token_ids, hidden, positions, slots, base, page_table[None, :], ancestors)
        ids, values, hidden = self.run(DRAFT_STEP, rows, pools)
        return ids, values, hidden

    def draft_tree(
        self,
        token_ids: np.ndarray,
        features: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        page_table: np.ndarray,
        base: np.ndarray,
        tree: np.ndarray,
        floor: float,
        pools: Pools,
    ) -> np.ndarray:
        """`draft_extend`, and from its last row on the likeliest nodes of each level, for as many
        levels as `tree` int32 [s, 3, n] of zeros has room for (draft_loop.py); n at most the
        head's guesses. The nodes' slots begin at base [1].

        Returns the tree. It may end where no node of a level reaches the probability `floor`.
        """
        last = np.array([len(token_ids) - 1], np.int32)
        rows = (token_ids, features, positions, slots, page_table[None, :], last)
        root = (positions[-1:], slots[-1:], base, NO_ANCESTORS)
        (grown,) = self.run(DRAFT_TREE, (*rows, *root, tree, np.array([floor])), pools)
        return grown

    def _decoded(
        self, kind: str, rows: Sequence[np.ndarray], pools: Pools, sparse: bool
    ) -> Decoded:
        """What `decode` or `verify` gives for these arguments."""
        return Decoded(*self._outputs(self.run(kind, rows, pools, sparse)))

    def _outputs(self, arrays: list[np.ndarray]) -> Outputs:
        """Of a function that returns logits, then features if there is a draft head, then blocks if
        it is sparse.
        """
        logits, *rest = arrays
        features = rest.pop(0) if self.manifest.draft else None
        return Outputs(logits[:, : self.vocab_size], features, tuple(rest))
