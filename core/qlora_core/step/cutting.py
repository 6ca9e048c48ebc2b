"""Which examples of a step are computed together."""

from collections.abc import Sequence


def cut(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Micro-batches of at most ``token_budget`` tokens, as indices into ``lengths``.

    Longest first, each into the fullest micro-batch that still takes it (best-fit decreasing). An example
    longer than the budget is a micro-batch of its own. The result depends on the lengths alone.
    """
    batches: list[list[int]] = []
    used: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        takers = [b for b, tokens in enumerate(used) if tokens + lengths[index] <= token_budget]
        if takers:
            fullest = max(takers, key=lambda b: used[b])
            batches[fullest].append(index)
            used[fullest] += lengths[index]
        else:
            batches.append([index])
            used.append(lengths[index])
    return batches
