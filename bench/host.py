"""How long the host takes for a layer: a decoder so small that computing hardly counts, on one CPU core.

usage: python bench/host.py [--layers 24] [--rounds 30]

Forward and backward with no layer recomputed, with all of them by torch's checkpoint, and by ours; with our adapters
and the model's own layers. What kernels cost to launch is not in it; a card's host has that besides.
"""

import argparse
import gc
import time
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_core.backends.packed_loss import decoder_of, packed_loss
from qlora_core.data import TokenizedExample
from qlora_core.kernels.fused_lora import fuse_adapters
from qlora_core.memory.checkpointed_layers import recompute_layers
from qlora_core.model.packing import pack

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
TOKENS = 32


def small_model(layers: int) -> Any:
    """Qwen 3's layers with adapters on all that is linear."""
    config = AutoConfig.for_model("qwen3", num_hidden_layers=layers, **SHAPE)
    base = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    fuse_adapters(model, decoder_of(model), torch.float32)
    return model.train()


def milliseconds(model: Any, layers: int, rounds: int) -> tuple[float, float]:
    """Of one layer's forward, and of its backward: the middle of some rounds."""
    loss_sum = packed_loss(model, attention="sdpa", kernel="chunked", chunk_tokens=64, autocast_dtype=None)
    packed = pack([TokenizedExample(input_ids=list(range(TOKENS)), supervised=[True] * TOKENS)], torch.device("cpu"))
    forward, backward = [], []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        loss = loss_sum(packed)
        between = time.perf_counter()
        loss.backward()
        forward.append(between - start)
        backward.append(time.perf_counter() - between)
    return 1000 * median(forward[3:]) / layers, 1000 * median(backward[3:]) / layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = small_model(options.layers)
    gc.freeze()
    print("| recomputed | forward ms | backward ms | both |\n|" + " --- |" * 4)
    for name, count, lighter in (
        ("none", 0, True),
        ("all, torch's", options.layers, False),
        ("all, ours", options.layers, True),
    ):
        recompute_layers(model.get_base_model(), count, False, lighter=lighter)
        forward, backward = milliseconds(model, options.layers, options.rounds)
        print(f"| {name} | {forward:.2f} | {backward:.2f} | {forward + backward:.2f} |", flush=True)


if __name__ == "__main__":
    main()
