"""Kinds of layers: one entry each, under words that transformers knows."""

from typing import get_args

import pytest

from qlora_profiles.architectures import ARCHITECTURES, UNKNOWN
from qlora_profiles.layer_kinds import ATTENTION, KIND_BY_CONFIG_WORD, KIND_BY_MODULE, LAYER_KINDS, LayerKind


def test_every_kind_has_an_entry() -> None:
    assert tuple(LAYER_KINDS) == get_args(LayerKind)
    assert {kind for family in (*ARCHITECTURES.values(), UNKNOWN) for kind in family.layer_kinds} <= {*LAYER_KINDS}


def test_no_word_or_module_means_two_kinds() -> None:
    names = LAYER_KINDS.values()
    assert len(KIND_BY_CONFIG_WORD) == sum(len(each.config_words) for each in names)
    assert len(KIND_BY_MODULE) == sum(len(each.modules) for each in names)


def test_a_kind_without_attention_is_told_by_its_modules() -> None:
    assert ATTENTION == ("attention", "sliding attention", "chunked attention")
    assert {*KIND_BY_MODULE.values()} == {*LAYER_KINDS} - {*ATTENTION}


@pytest.mark.parametrize("word", KIND_BY_CONFIG_WORD)
def test_words_are_those_of_transformers(word: str) -> None:
    from transformers import configuration_utils as theirs

    older = theirs._LEGACY_LAYER_TYPE_REMAP
    assert word in theirs.ALLOWED_ATTN_LAYER_TYPES or word in older
