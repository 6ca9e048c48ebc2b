"""Which examples of a step are computed together."""

from bisect import bisect, insort
from collections.abc import Sequence
from heapq import heappop, heappush


def make_micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Micro-batches of at most ``token_budget`` tokens, as indices into ``lengths``.

    As few as best-fit decreasing needs (11/9 of the fewest possible and a few more at worst: Johnson et al., 1974), and
    all of about one size where that is possible: equal ones need least memory, and least padding where they are padded.
    An example longer than the budget is a micro-batch of its own. The result depends on the lengths (tokens) alone.
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    full = _filled(lengths, longest_first, token_budget)
    if len(full) < 2:
        return full
    even = _spread(lengths, longest_first, len(full))
    fits = all(sum(lengths[i] for i in batch) <= token_budget or len(batch) == 1 for batch in even)
    return even if fits else full


def _filled(lengths: Sequence[int], order: Sequence[int], token_budget: int) -> list[list[int]]:
    """Each example in turn into the fullest micro-batch that still takes it."""
    batches: list[list[int]] = []
    used: list[tuple[int, int]] = []
    """(tokens, minus the number) of each, in order: of equally full ones the first is taken."""
    for index in order:
        place = bisect(used, (token_budget - lengths[index], 1)) - 1
        if place >= 0:
            tokens, number = used.pop(place)
            batches[-number].append(index)
        else:
            tokens, number = 0, -len(batches)
            batches.append([index])
        insort(used, (tokens + lengths[index], number))
    return batches


def _spread(lengths: Sequence[int], order: Sequence[int], count: int) -> list[list[int]]:
    """Each example in turn into the emptiest of ``count`` micro-batches."""
    batches: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, number) for number in range(count)]
    for index in order:
        tokens, number = heappop(emptiest)
        batches[number].append(index)
        heappush(emptiest, (tokens + lengths[index], number))
    return batches
