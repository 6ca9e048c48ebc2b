"""What a plan needs to know of a data set: lengths, what is learned, what would be cut."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from qlora_core.data.chat_tokenizer import ChatTokenizer
from qlora_core.data.encoded import Encoded, cut_all
from qlora_core.data.options import DataSet
from qlora_core.data.split import split
from qlora_profiles.errors import UserError
from qlora_profiles.facts import DataFacts

QUANTILES = 10


def describe(
    dataset: DataSet,
    encoded: Sequence[Encoded],
    max_length: int,
    *,
    tokenizer: ChatTokenizer,
    val_size: float = 0.0,
    seed: int = 42,
) -> DataFacts:
    """Facts of a data set whose examples were encoded without a cut.

    Lengths and ``longest_tokens`` are before cutting to ``max_length``; the means are of what is trained:
    training rows, cut, without dropped ones. Raises ``UserError`` where nothing would be left to learn.
    """
    train, held_out = split(encoded, val_size, seed)
    kept, dropped_train = cut_all(train, max_length)
    check_learns(encoded, max_length)
    check_learns(train, max_length)
    train_lengths = lengths(train)
    return DataFacts(
        path=dataset.path,
        fingerprint=dataset.fingerprint,
        file_format=dataset.file_format,
        row_shape=dataset.row_shape,
        rows=len(encoded),
        train_rows=len(train),
        held_out_rows=len(held_out),
        rows_rejected=len(dataset.rejected),
        rows_cut=sum(len(example.input_ids) > max_length for example in encoded),
        rows_dropped=dropped_train + cut_all(held_out, max_length)[1],
        longest_tokens=max(len(example.input_ids) for example in encoded),
        mean_tokens=sum(len(example.input_ids) for example in kept) / len(kept),
        mean_supervised_tokens=sum(example.supervised_tokens for example in kept) / len(kept),
        length_quantiles=quantiles(train_lengths),
        template=tokenizer.template_name,
        stop_token=tokenizer.stop_tokens[0],
        notes=tuple(dataset.notes),
    )


def lengths(encoded: Iterable[Encoded]) -> list[int]:
    """Lengths in tokens, shortest first."""
    return sorted(len(example.input_ids) for example in encoded)


def quantiles(ordered: Sequence[int]) -> tuple[int, ...]:
    """The 0, 10, ... 100th percentiles of ordered lengths; each is a length that some row has."""
    last = len(ordered) - 1
    return tuple(ordered[-(-last * tenth // QUANTILES)] for tenth in range(QUANTILES + 1))


def coverage(ordered: Sequence[int], max_length: int) -> float:
    """The share of rows, by their ordered lengths, that ``max_length`` does not cut."""
    return bisect_right(ordered, max_length) / len(ordered)


def check_learns(encoded: Sequence[Encoded], max_length: int) -> None:
    """Raise ``UserError`` where no supervised token is left after cutting, telling the length that would do."""
    if any(True in example.supervised[:max_length] for example in encoded):
        return
    needed = [example.supervised.index(True) + 1 for example in encoded if True in example.supervised]
    if not needed:
        raise UserError("no token of this data would be learned", "--loss-on all, or rows with answers")
    longest = max(len(example.input_ids) for example in encoded)
    raise UserError(
        f"--max-length {max_length}: every answer begins after that (the first at token {min(needed):,})",
        f"--max-length {longest} (the longest row)",
    )
