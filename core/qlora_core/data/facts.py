"""What a plan needs to know of a data set: lengths, supervised tokens, what would be cut."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from qlora_core.data.chat.chat_tokenizer import ChatTokenizer
from qlora_core.data.duplicates import duplicate_notes
from qlora_core.data.lengths.token_counts import TokenCounts
from qlora_core.data.schema import DataSet
from qlora_core.data.split import split
from qlora_profiles.errors import UserError
from qlora_profiles.facts import DataFacts, SourceFacts

QUANTILES = 10


def describe(
    dataset: DataSet,
    token_counts: Sequence[TokenCounts],
    max_length: int,
    *,
    tokenizer: ChatTokenizer,
    val_size: float = 0.0,
    seed: int = 42,
) -> DataFacts:
    """Facts of a data set whose examples were measured without a cut.

    Lengths and ``longest_tokens`` are in tokens, before cutting to ``max_length``; the means are of what is trained on:
    training rows, cut, without dropped ones.

    Raises:
        UserError: no supervised token would be left; ``val_size`` leaves no row to train on.
    """
    train, held_out = split(token_counts, val_size, seed)
    check_any_supervised(token_counts, max_length)
    check_any_supervised(train, max_length)
    kept = [one for one in train if one.supervised_within(max_length)]
    return DataFacts(
        sources=dataset.sources or (source_facts(dataset),),
        rows=len(token_counts),
        train_rows=len(train),
        held_out_rows=len(held_out),
        rows_rejected=len(dataset.rejected),
        rows_cut=sum(one.tokens > max_length for one in token_counts),
        rows_dropped=sum(not one.supervised_within(max_length) for one in token_counts),
        longest_tokens=max(one.tokens for one in token_counts),
        mean_tokens=sum(min(one.tokens, max_length) for one in kept) / len(kept),
        mean_supervised_tokens=sum(one.supervised_within(max_length) for one in kept) / len(kept),
        length_quantiles=quantiles(row_lengths(train)),
        template=tokenizer.template_name,
        stop_token=tokenizer.stop_tokens[0],
        warnings=(*dataset.warnings, *tokenizer.warnings()),
        learned=tokenizer.learned(),
        notes=(*dataset.notes, *duplicate_notes(dataset.conversations, val_size, seed)),
        template_digest=template_digest(tokenizer),
    )


def template_digest(tokenizer: ChatTokenizer) -> str:
    """SHA-256 of the template that renders the rows, in hexadecimal."""
    return hashlib.sha256(tokenizer.template.encode("utf-8")).hexdigest()


def source_facts(dataset: DataSet) -> SourceFacts:
    """What a plan keeps of a single source that was read."""
    return SourceFacts(
        path=dataset.path,
        fingerprint=dataset.fingerprint,
        file_format=dataset.file_format,
        row_shape=dataset.row_shape,
        rows=len(dataset.conversations),
        rows_rejected=len(dataset.rejected),
        share=dataset.share,
    )


def row_lengths(token_counts: Iterable[TokenCounts]) -> list[int]:
    """Lengths in tokens, shortest first."""
    return sorted(one.tokens for one in token_counts)


def quantiles(ordered: Sequence[int]) -> tuple[int, ...]:
    """The 0, 10, ... 100th percentiles of ordered lengths; each is a length that some row has."""
    last = len(ordered) - 1
    return tuple(ordered[-(-last * tenth // QUANTILES)] for tenth in range(QUANTILES + 1))


def coverage(ordered: Sequence[int], max_length: int) -> float:
    """The share of rows, by their ordered lengths, that ``max_length`` does not cut."""
    return bisect_right(ordered, max_length) / len(ordered)


def check_any_supervised(token_counts: Sequence[TokenCounts], max_length: int) -> None:
    """Nothing, where a supervised token is left after cutting.

    Raises:
        UserError: none is; tells the length that would do.
    """
    if any(one.supervised_within(max_length) for one in token_counts):
        return
    needed = [one.supervised[0][0] + 1 for one in token_counts if one.supervised]
    if not needed:
        raise UserError("no token of this data would be learned", "--loss-on all, or rows with answers")
    raise UserError(
        f"--max-length {max_length}: every answer begins after that (the first at token {min(needed):,})",
        f"--max-length {max(one.tokens for one in token_counts)} (the longest row)",
    )
