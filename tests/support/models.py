"""Tiny models of real architectures with random weights, and a tokenizer of their own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
PARTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": EXPERTS,
    "gemma3": {
        "text_config": SIZES | FAMILIES["gemma3_text"] | {"model_type": "gemma3_text"},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 310,
        "boi_token_index": 311,
        "eoi_token_index": 312,
    },
}
"""What those families need that have experts, or a part that sees."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class PlainExample:
    """Token ids, and which of them are supervised."""

    input_ids: list[int]
    supervised: list[bool]


def tiny_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A model in float32 whose attention is transformers' SDPA."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **(SIZES | ids | FAMILIES.get(family, {}) | PARTS.get(family, {}) | changes))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.08)
    return model


def random_examples(count: int, seed: int = 0, longest: int = 40, vocab_size: int = 320) -> list[PlainExample]:
    """Examples of random lengths whose last half, about, is supervised."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    lengths = [draw(4, longest) for _ in range(count)]
    starts = [draw(1, length) for length in lengths]
    ids = [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths]
    return [
        PlainExample(i, [at >= start for at in range(length)])
        for i, length, start in zip(ids, lengths, starts, strict=True)
    ]


def save_tokenizer(folder: Path, vocab_size: int = 320) -> None:
    """A byte-level BPE with ChatML tokens, trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the quick brown fox jumps over the lazy dog", "user assistant system"] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    fast.save_pretrained(str(folder))


def save_tiny_model(folder: Path, family: str = "qwen3", seed: int = 0, **changes: Any) -> Path:
    """A model folder as a person would have it on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_model(family, seed, **changes).save_pretrained(str(folder))
    save_tokenizer(folder)
    return folder


def write_rows(path: Path, count: int = 24, offset: int = 0) -> Path:
    """A JSONL of short conversations of different lengths."""
    numbers = range(offset, offset + count)
    asked = [f"say {'the quick fox ' * (1 + i % 4)}" for i in numbers]
    answered = [f"the lazy dog number {i} " + "jumps over " * (i % 5) for i in numbers]
    rows = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in zip(asked, answered, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
