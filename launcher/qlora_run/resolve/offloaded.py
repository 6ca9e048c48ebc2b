"""What activations take of main memory while they wait there."""

from qlora_run.resolve.memory import Costs


def offloaded_bytes(costs: Costs, tokens: int, recomputed: int) -> int:
    """Page-locked memory for the inputs of ``recomputed`` layers: torch takes it in powers of two."""
    one = costs.offloaded_token * tokens
    return recomputed * (1 << (one - 1).bit_length()) if one else 0


def most_offloaded_tokens(costs: Costs, room_bytes: int) -> int:
    """The most tokens of a micro-batch whose inputs have room when every layer recomputes."""
    one = room_bytes // costs.num_layers
    return (1 << (one.bit_length() - 1)) // costs.offloaded_token if one else 0
