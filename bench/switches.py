"""Kernels that are on or off, by the words of the benchmarks. torch must not be imported here: who imports this has yet
to say how its allocator works.
"""

from collections.abc import Mapping
from typing import Any

SWITCHES = {"offload": "offload_activations", "graphs": "cuda_graphs", "rematerialize": "rematerialize_activations"}


def also(execution: Mapping[str, Any]) -> str:
    """What an execution does beside its sizes: ``, 21 dequantized, graphs``."""
    dequantized = [f"{execution['layers_dequantized']} dequantized"] if execution["layers_dequantized"] else []
    return "".join(
        f", {word}" for word in [*dequantized, *(word for word, name in SWITCHES.items() if execution[name])]
    )
