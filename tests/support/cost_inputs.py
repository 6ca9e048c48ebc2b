"""The settings that decide how much memory a step takes, as most tests have them."""

from typing import Any

from support.memory_oracle import CHUNK_TOKENS

INPUTS: dict[str, Any] = {
    "method": "qlora-4",
    "double_quant": True,
    "lora_r": 16,
    "lora_dropout": 0.0,
    "optimizer": "adamw",
    "device": "cuda",
    "compute_dtype": "bfloat16",
    "attention": "varlen",
    "loss_kernel": "chunked",
    "loss_chunk_tokens": CHUNK_TOKENS,
    "optimizer_kernel": "fused",
    "expandable_segments": True,
    "offload_activations": False,
    "cuda_graphs": False,
    "fused_kernels": False,
    "fused_adapters": False,
    "expands_heads": False,
}
