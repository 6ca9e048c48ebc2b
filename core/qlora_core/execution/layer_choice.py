"""Which layers recompute: known to the step and to the planner, which has no torch."""


def choose_layers(count: int, total: int) -> set[int]:
    """``count`` indices out of ``total``, evenly spread: ``choose_layers(2, 4) == {0, 2}``."""
    return {i * total // count for i in range(count)} if count else set()
