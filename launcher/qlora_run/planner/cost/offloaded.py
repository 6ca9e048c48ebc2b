"""What activations take of main memory while they wait there."""

from qlora_core.execution.pinned_memory import pinned_bytes
from qlora_run.planner.cost.memory import LENGTH_STEP, Costs


def offloaded_bytes(costs: Costs, tokens: int, recomputed: int) -> int:
    """Bytes of page-locked memory for the inputs of ``recomputed`` layers, each of ``tokens`` tokens."""
    return pinned_bytes(costs.offloaded_token * tokens, recomputed)


def most_offloaded_tokens(costs: Costs, room_bytes: int) -> int:
    """The most tokens of a micro-batch whose inputs have room when every layer recomputes: a multiple of 64, or 0."""
    most = room_bytes // (costs.num_layers * costs.offloaded_token) // LENGTH_STEP * LENGTH_STEP
    while most and offloaded_bytes(costs, most, costs.num_layers) > room_bytes:
        most -= LENGTH_STEP
    return most
