"""Which kernels let queries share key heads, found out by trying."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from support.models import FAMILIES, tiny_model
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qlora_core.kernels.attention import implementation, shares_heads

CPU = torch.device("cpu")


def by_sequence(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *rest: Any, grouped: bool = True, **kwargs: Any
) -> Any:
    """Attention of sequences end to end, T x heads x d, in plain torch."""
    parts = []
    for a, b in pairwise(starts.tolist()):
        query, key, value = (t[a:b].transpose(0, 1) for t in (q, k, v))
        part = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        parts.append(part.transpose(0, 1))
    return torch.cat(parts)


def test_a_kernel_that_shares_heads_is_recognised() -> None:
    assert shares_heads(by_sequence, CPU, torch.float32)


def test_a_kernel_that_pairs_the_heads_in_another_way_is_not() -> None:
    def wrong(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **kwargs: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        return by_sequence(q, k.repeat(1, groups, 1), v.repeat(1, groups, 1), *rest, grouped=False)

    assert not shares_heads(wrong, CPU, torch.float32)


def test_a_kernel_that_refuses_does_not() -> None:
    def refusing(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **kwargs: Any) -> Any:
        return by_sequence(q, k, v, *rest, grouped=False)

    assert not shares_heads(refusing, CPU, torch.float32)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_answers_are_made_by_the_same_attention_without_boundaries(family: str) -> None:
    """Generation knows no boundaries and brings a cache; the packed kernel's name must not stop it."""
    model = tiny_model(family).eval()
    ids = torch.arange(3, 33)[None]
    answers = []
    for name in ("sdpa", implementation("varlen", model.config)):
        model.set_attn_implementation(name)
        scores = model.generate(
            input_ids=ids, max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_logits=True
        ).logits
        answers.append(torch.stack(scores))
    assert answers[0].shape[0] == 12
    assert torch.allclose(answers[0], answers[1], atol=1e-4)


def test_the_packed_kernel_has_no_mask_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would look through the positions of each micro-batch, and wait for the card to answer."""
    from transformers import masking_utils

    looked: list[int] = []
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda positions: looked.append(1))
    for family in FAMILIES:
        model = tiny_model(family)
        model.set_attn_implementation(implementation("varlen", model.config))
        model(input_ids=torch.ones(1, 5, dtype=torch.long), position_ids=torch.arange(5)[None], use_cache=False)
    assert looked == []
