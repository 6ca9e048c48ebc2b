"""Several sources of one data set: what is told of each, and of all together."""

import msgspec
import pytest
from support.planning_facts import data_of

from qlora_profiles.errors import UserError
from qlora_profiles.facts import DataFacts, SourceFacts
from qlora_profiles.registry import lookup, parse


def of(*fingerprints: str) -> DataFacts:
    each = [
        SourceFacts(
            path=f"{mark}.jsonl", fingerprint=mark, file_format="JSONL", row_shape="text", rows=1, rows_rejected=0
        )
        for mark in fingerprints
    ]
    return msgspec.structs.replace(data_of(), sources=tuple(each))


def test_a_single_source_is_the_data() -> None:
    assert (of("a").path, of("a").fingerprint) == ("a.jsonl", "a")


def test_the_data_is_all_of_its_sources_in_their_order() -> None:
    assert of("a", "b").path == "a.jsonl, b.jsonl"
    identities = {of(*marks).fingerprint for marks in (("a",), ("a", "b"), ("b", "a"), ("ab",), ("a", "b", "c"))}
    assert len(identities) == 5


@pytest.mark.parametrize("raw", ["a,b.jsonl", ["a,b.jsonl"]])
def test_a_file_may_have_a_comma_in_its_name(raw: object) -> None:
    assert parse(lookup("data"), raw) == ("a,b.jsonl",)


def test_there_may_be_several_sources_and_never_none() -> None:
    assert parse(lookup("data"), ["a.jsonl", "b.jsonl:0.5"]) == ("a.jsonl", "b.jsonl:0.5")
    with pytest.raises(UserError, match=r"data: .* is not allowed; text"):
        parse(lookup("data"), [])
