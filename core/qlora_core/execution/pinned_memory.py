"""How much page-locked memory tensors take: torch gives it in powers of two (ATen's ``CachingHostAllocator``).

Known to the planner, too, which has no torch.
"""

from qlora_core.execution.graph_sizes import power_of_two

MOST = 8
"""Tensors in one piece of memory; with so many at most a fifth of it is wasted."""


def pinned_block(num_bytes: int) -> tuple[int, int]:
    """How many tensors of ``num_bytes`` to put into one piece, so that the least of it is wasted, and its bytes."""
    sizes = [(count, power_of_two(count * num_bytes)) for count in range(1, MOST + 1)]
    return min(sizes, key=lambda each: each[1] / each[0])


def pinned_bytes(num_bytes: int, tensors: int) -> int:
    """Bytes of page-locked memory that ``tensors`` of ``num_bytes`` each take."""
    if not num_bytes or not tensors:
        return 0
    count, size = pinned_block(num_bytes)
    return -(-tensors // count) * size
