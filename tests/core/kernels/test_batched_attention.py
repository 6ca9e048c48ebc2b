"""Rows of one length as a batch: the same attention as end to end, and asked for only where it is worth it."""

import itertools
from typing import Any

import pytest
import torch
from support.models import PlainExample, tiny_model
from torch import Tensor

from qlora_core.backends.packed_loss import model_inputs
from qlora_core.kernels.attention import varlen_attention
from qlora_core.kernels.batched_attention import LONG, SHORTEST, attend, row_length, same_attention, usable
from qlora_core.model.packing import pack

CPU = torch.device("cpu")


def example(length: int) -> PlainExample:
    return PlainExample([5] * length, [True] * length)


def in_turn(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, longest: int) -> Tensor:
    """Each sequence by itself."""
    starts = boundaries.tolist()
    return torch.cat([attend(q[a:b], k[a:b], v[a:b], b - a, None) for a, b in itertools.pairwise(starts)])


def blind(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, longest: int) -> Tensor:
    """All sequences as one: tokens see those of other rows."""
    return attend(q, k, v, len(q), None)


def test_rows_do_not_see_each_other() -> None:
    assert same_attention(in_turn, CPU, 4, 2, 16, warn=pytest.fail)
    said: list[str] = []
    assert not same_attention(blind, CPU, 4, 2, 16, warn=said.append)
    assert "rows of one length" in said[0]


def test_a_row_is_as_long_as_each_of_its_sequences() -> None:
    def packed(*lengths: int) -> Any:
        return pack([example(n) for n in lengths], CPU)

    full = SHORTEST + 10
    assert row_length(packed(full, full), full) == full
    assert row_length(packed(full), full) == full
    assert row_length(packed(full, full - 1), full) is None
    assert row_length(packed(full - 1, full - 1), full) is None, "any length may come once"
    assert row_length(packed(full, full), None) is None
    assert row_length(packed(SHORTEST - 1), SHORTEST - 1) is None, "too short to be worth it"
    assert row_length(packed(LONG), full) == LONG, "so long that it is worth it once"


def test_only_cards_that_have_a_faster_kernel_use_it() -> None:
    assert not usable(tiny_model("qwen3").config, CPU, in_turn, pytest.fail)


@pytest.mark.parametrize("window", [None, 600, SHORTEST])
def test_attention_takes_rows_as_a_batch_unless_a_window_is_narrower(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def end_to_end(q: Tensor, *rest: Any) -> Tensor:
        used.append("end to end")
        return torch.zeros_like(q)

    monkeypatch.setattr("qlora_core.kernels.attention.end_to_end", end_to_end)
    packed = pack([example(SHORTEST)] * 2, CPU)
    said = model_inputs(packed, "varlen", SHORTEST)
    q, k, v = (torch.randn(1, heads, 2 * SHORTEST, 8) for heads in (4, 2, 2))
    out, _ = varlen_attention(torch.nn.Identity(), q, k, v, None, sliding_window=window, **said)
    assert used == (["end to end"] if window == 600 else [])
    if not used:
        q, k, v = (t[:, :, :SHORTEST] for t in (q, k, v))
        first, _ = varlen_attention(torch.nn.Identity(), q, k, v, None, **said)
        assert torch.allclose(out[:, :SHORTEST], first, atol=1e-5)
