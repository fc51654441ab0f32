"""What the demo's training assumes of the engine: its choice of blocks, its rounding to w4, its
EAGLE-3 head.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy_eagle
import pytest
from draft_heads import EAGLE3
from numpy_model import select, windows

from minicpm_mlc.compile.config.model_config import SparseConfig
from minicpm_mlc.compile.model.registry import read_config_folder, read_draft_config
from minicpm_mlc.ops.formats.weights import SCHEMES

DEMO = Path(__file__).parent.parent / "examples" / "demo_model"
sys.path.insert(0, str(DEMO))
torch = pytest.importorskip("torch")
eagle3, heldout = pytest.importorskip("eagle3"), pytest.importorskip("heldout")
quantized, selection = pytest.importorskip("quantized"), pytest.importorskip("selection")
train_eagle3 = pytest.importorskip("train_eagle3")

SPARSE = {
    "block_size": 64,
    "init_blocks": 1,
    "kernel_size": 32,
    "kernel_stride": 16,
    "topk": 4,
    "window_size": 64,
}


def random_keys(length: int) -> tuple:
    """q [1, 4, length, 16] and k [1, 2, length, 16]."""
    rng = torch.Generator().manual_seed(length)
    return tuple(torch.randn(1, heads, length, 16, generator=rng) * 2 for heads in (4, 2))


def test_training_reads_the_blocks_that_the_engine_selects() -> None:
    q, k = random_keys(700)
    mask = selection.block_mask(q, k, SPARSE)[0].numpy()
    sparse = SparseConfig(init_blocks=1, window_size=64, topk=4, dense_len=128)
    for row in (0, 63, 127, 128, 500, 699):
        for kv in range(2):
            heads = q[0, 2 * kv : 2 * kv + 2, row].double().numpy()
            chosen = select(heads, windows(k[0, kv].double().numpy()), row, sparse)
            expected = np.isin(np.arange(700) // 64, chosen) & (np.arange(700) <= row)
            np.testing.assert_array_equal(mask[kv, row], expected)


def test_the_mass_of_all_blocks_is_one_and_lies_where_the_key_matches() -> None:
    q, k = random_keys(700)
    q[0, :, 690], rows = 4 * k[0, :1, 200], torch.tensor([[690]])
    mass = selection.block_mass(q[:, :, 690:691], k, rows)
    torch.testing.assert_close(mass.sum(-1), torch.ones(1, 2, 1))
    assert mass[0, 0, 0].argmax() == 200 // 64


def test_taught_scores_reach_what_dense_attention_reads() -> None:
    q, k = random_keys(1024)
    rows = torch.arange(896, 1024, 8)[None]
    q = q[:, :, rows[0]].requires_grad_()
    taught = torch.optim.Adam([q], lr=0.05)
    reached = []
    for _ in range(30):
        loss, far, found = selection.selection_loss(q, k, rows, SPARSE)
        taught.zero_grad()
        loss.backward()
        taught.step()
        reached.append((found / far).item())
    assert reached[-1] > 1.3 * reached[0]


def test_training_rounds_weights_as_the_compiler_does() -> None:
    weights = torch.randn(48, 96, generator=torch.Generator().manual_seed(4))
    weights[3, :32] = 0
    expected = SCHEMES["w4"].dequantize(SCHEMES["w4"].quantize(weights.numpy()))
    np.testing.assert_allclose(quantized.w4(weights).numpy(), expected, atol=1e-6)


def test_held_out_text_is_long_enough_and_the_same_for_a_seed() -> None:
    texts = heldout.held_out_text(seed=1, tokens=6000)
    assert (
        texts
        == heldout.held_out_text(seed=1, tokens=6000)
        != heldout.held_out_text(seed=2, tokens=6000)
    )
    assert 6000 < sum(map(len, texts)) / 3


def test_the_torch_head_drafts_as_the_definition_does(tmp_path: Path) -> None:
    """Depth d of row i follows the rows i - d .. i: the first reads features, the others the one
    before.
    """
    raw = json.loads((DEMO / "MiniCPM4.1-demo" / "config.json").read_text())
    base = read_config_folder(DEMO / "MiniCPM4.1-demo")
    config = {**train_eagle3.head_config(raw), "draft_vocab_size": 40}
    rng = torch.Generator().manual_seed(8)
    torch.manual_seed(8)
    head = eagle3.Eagle3(config, torch.arange(5, 205, 5))
    features, embedded = (torch.randn(1, 9, width, generator=rng) for width in (768, 256))
    depths = 3
    with torch.no_grad():
        drafted = [depth[0].numpy() for depth in head(features, embedded, depths)]
    w = {name: t.double().numpy() for name, t in head.state_dict().items()}
    numpy_config = read_draft_config(config, EAGLE3, False, base, "test")
    root = 5
    entered = list(numpy_eagle.entering(numpy_config, w, features[0, : root + 1].double().numpy()))
    nexts = embedded[0].double().numpy()
    for depth in range(depths):
        n = len(entered)
        sees = [list(range(i + 1)) for i in range(n)]
        hidden = numpy_eagle.layer(
            numpy_config, base, w, nexts[:n], np.array(entered), np.arange(n), sees
        )
        expected = numpy_eagle.logits(numpy_config, w, w["lm_head.weight"], hidden[-1:])
        np.testing.assert_allclose(drafted[depth][n - 1], expected[0], atol=1e-4)
        entered.append(hidden[-1])


def test_an_accept_length_counts_right_guesses_and_the_bases_own_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = [1, *range(300, 330)]

    def drafts(base, head, whole, features, depths) -> list:
        """Right at every row, but for the third guess in a row."""
        targets = torch.nn.functional.one_hot(whole[:, 2:], 400).float()
        return [targets if depth != 2 else -targets for depth in range(depths)]

    monkeypatch.setattr(train_eagle3, "drafts", drafts)
    monkeypatch.setattr(train_eagle3, "run_base", lambda base, ids: (None, None))
    head = SimpleNamespace(d2t=torch.zeros(400, dtype=torch.int64))
    assert train_eagle3.accept_lengths(None, head, ids, start=12) == [3, 3, 3, 3, 3, 3]
