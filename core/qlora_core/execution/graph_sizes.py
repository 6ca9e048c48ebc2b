"""The sizes that CUDA graphs are made for. A graph computes one shape only, so micro-batches are padded to one of few.

Sizes lie a fourth root of two apart, below the largest micro-batch that there may be: padding adds a fifth at most,
beside the rounding, to all but the smallest.
"""

from functools import lru_cache

LARGEST_GRAPHED_TOKENS = 8192
"""Beyond it the card is busy computing anyway; set by hand."""
SMALLEST_TOKENS = 256
NUM_SIZES = 12
SIZES_TO_A_HALF = 4
MULTIPLE = 64
"""Set by hand, all four; what they cost in padding: ``tests/core/memory/test_cuda_graphs.py``."""


@lru_cache(maxsize=1024)
def graph_sizes(most_tokens: int) -> tuple[int, ...]:
    """Tokens of the graphs for micro-batches of at most ``most_tokens``, the largest first; multiples of 64."""
    exact = [max(SMALLEST_TOKENS, most_tokens) / 2 ** (k / SIZES_TO_A_HALF) for k in range(NUM_SIZES)]
    rounded = [-(-int(tokens) // MULTIPLE) * MULTIPLE for tokens in exact if tokens >= SMALLEST_TOKENS]
    return tuple(dict.fromkeys(rounded))


def padded_size(tokens: int, most_tokens: int) -> int:
    """The smallest size that takes ``tokens``, of those for at most ``most_tokens``.

    Raises:
        ValueError: ``tokens`` are more.
    """
    return min(size for size in graph_sizes(most_tokens) if size >= tokens)


def power_of_two(count: int) -> int:
    """The least that is at least ``count``."""
    return 1 << (count - 1).bit_length()
