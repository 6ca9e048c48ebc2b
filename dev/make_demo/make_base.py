"""Make the demo's base model from nothing but a seed: corpus, tokenizer, a tiny Qwen3 trained on it.

``python -m make_demo.make_base --output DIR`` in ``dev/``; about twenty minutes on one core. The same seed gives the
same corpus and tokenizer everywhere, and the same weights on the same kind of processor and torch version.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from make_demo.make_data import SEED, as_row
from make_demo.small_talk import conversation

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

VOCABULARY = 768
STEPS = 5500
EXAMPLES_PER_STEP = 16
LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
SORTED_STEPS = 16
IGNORED = -100
ROLE_WORDS = ["system\n", "user\n", "assistant\n"] * 100
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}"
    "{%- else -%}{{- message['content'] + '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on 5,000 conversations and give it the ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = Random(seed)
    texts = ["\n".join(text for turn in conversation(rng) for text in turn) for _ in range(5000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *ROLE_WORDS], trainer)
    wrapped: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Return an untrained Qwen3 of 1.9 million parameters."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, rng: Random) -> tuple[list[int], list[int]]:
    """Draw one conversation; return its token ids and its labels (assistant tokens and their stop token only)."""
    messages = as_row(conversation(rng))["messages"]
    encoded: Any = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids: list[int] = encoded["input_ids"]
    masks = encoded["assistant_masks"]
    return ids, [token if mask else IGNORED for token, mask in zip(ids, masks, strict=True)]


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids, labels) of shape (examples, longest) without end, examples of like length together."""
    rng = Random(seed)
    while True:
        examples = [encode(tokenizer, rng) for _ in range(EXAMPLES_PER_STEP * SORTED_STEPS)]
        examples.sort(key=lambda example: len(example[0]))
        starts = list(range(0, len(examples), EXAMPLES_PER_STEP))
        rng.shuffle(starts)
        for start in starts:
            yield pad(examples[start : start + EXAMPLES_PER_STEP], tokenizer.pad_token_id)


def pad(examples: list[tuple[list[int], list[int]]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right, where a causal model without a mask cannot see it from any supervised token."""
    import torch

    longest = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids, _ in examples])
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in examples])
    return ids, labels


def learning_rate(step: int, steps: int) -> float:
    """Return the rate at `step`: linear warmup, then a cosine to zero."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return LEARNING_RATE * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
    """Train in place, in 32-bit, on freshly drawn conversations."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    stream = batches(tokenizer, seed + 1)
    started = time.monotonic()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps)
        ids, labels = next(stream)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}/{steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bfloat16 and its tokenizer, as any hub model's folder."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Make the base model anew."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a fixed number of threads keeps the sums, and so the weights, the same
    tokenizer = make_tokenizer(arguments.seed)
    model = make_model(tokenizer, arguments.seed)
    train(model, tokenizer, arguments.steps, arguments.seed)
    save(model, tokenizer, arguments.output)


if __name__ == "__main__":
    main()
