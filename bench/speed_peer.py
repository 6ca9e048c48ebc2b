"""One contender of ``speed.py`` in a process of its own: what somebody would run without this product.

usage: python bench/speed_peer.py JOB.json (``speed.py`` writes it); the last line is ``RESULT {...}``.
       python bench/speed_peer.py --matmul DEVICE: what the device reaches in a large matrix product, FLOP/s.

All of them get the same tokens, targets, order (the Trainer's sampler with the same seed), first adapter values
and schedule; how they batch, pad, pack and recompute is theirs.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_DISABLED": "true",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}


class Clock:
    """When each optimizer step ended, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def step(self) -> None:
        """A step is over, on the device too."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.time())


class Counting:
    """A collator that notes the real tokens of each batch that passes through it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.tokens: list[int] = []

    def __call__(self, examples: Any) -> Any:
        batch = self.inner(examples)
        mask = batch.get("attention_mask")
        self.tokens.append(int(mask.sum()) if mask is not None else batch["input_ids"].numel())
        return batch


def main() -> None:
    os.environ.update(QUIET)
    if sys.argv[1] == "--matmul":
        print("RESULT " + json.dumps(matmul(sys.argv[2])))
        return
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        result = CONTENDERS[job["who"]](job)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        oom = "out of memory" in text.lower()
        if not oom:
            import traceback

            traceback.print_exc()
        result = {"oom": oom, "error": text[:300]}
    print("RESULT " + json.dumps(result), flush=True)


def matmul(device: str) -> float:
    """Rate of a large matrix product in the format that the device trains in."""
    import torch

    on_card = device == "cuda"
    size, dtype = (8192, torch.bfloat16) if on_card else (1536, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        for _ in range(10 if on_card else 1):
            a @ b
        if on_card:
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / (10 if on_card else 1))
    return 2 * size**3 / best


def cap(job: dict[str, Any]) -> None:
    """Keep the whole process, context included, inside the cap."""
    if not job["cap_bytes"] or job["device"] != "cuda":
        return
    import torch

    torch.zeros(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    outside = max(0, total - free - job["used_before_bytes"] - torch.cuda.memory_reserved())
    torch.cuda.set_per_process_memory_fraction(max(0.0, job["cap_bytes"] - outside) / total)


def rows_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokenised rows."""
    with Path(job["rows"]).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def dataset(job: dict[str, Any]) -> Any:
    """The rows as TRL takes tokenised ones."""
    from datasets import Dataset

    rows = rows_of(job)
    masks = [[int(flag) for flag in row["supervised"]] for row in rows]
    return Dataset.from_dict({"input_ids": [row["input_ids"] for row in rows], "assistant_masks": masks})


def base_model(job: dict[str, Any]) -> Any:
    """The base as transformers loads it, in 4 bits or 16."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    recipe, dtype = job["recipe"], getattr(torch, job["dtype"])
    extra: dict[str, Any] = {}
    if recipe["method"] == "qlora-4":
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=recipe["quant_type"],
            bnb_4bit_use_double_quant=recipe["double_quant"],
            bnb_4bit_compute_dtype=dtype,
        )
    place = {"": 0 if job["device"] == "cuda" else "cpu"}
    return AutoModelForCausalLM.from_pretrained(recipe["model"], dtype=dtype, device_map=place, **extra)


def lora_config(job: dict[str, Any]) -> Any:
    """The adapter of the recipe."""
    from peft import LoraConfig

    recipe = job["recipe"]
    return LoraConfig(
        r=recipe["lora_r"],
        lora_alpha=recipe["lora_alpha"],
        lora_dropout=0.0,
        target_modules=job["targets"],
        task_type="CAUSAL_LM",
    )


def trainer_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """The recipe in the words of transformers' Trainer, and this contender's way of batching."""
    recipe = job["recipe"]
    warmup = recipe["warmup_ratio"] if recipe["warmup_steps"] is None else recipe["warmup_steps"]
    return {
        "output_dir": job["folder"],
        "max_steps": job["steps"],
        "per_device_train_batch_size": job["batch"],
        "gradient_accumulation_steps": job["accumulation"],
        "learning_rate": recipe["learning_rate"],
        "lr_scheduler_type": recipe["lr_scheduler"],
        "warmup_steps": warmup,
        "weight_decay": recipe["weight_decay"],
        "max_grad_norm": recipe["max_grad_norm"],
        "optim": job["optimizer"],
        "seed": recipe["seed"],
        "data_seed": recipe["seed"],
        "bf16": job["dtype"] == "bfloat16",
        "fp16": job["dtype"] == "float16",
        "use_cpu": job["device"] == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataset_num_proc": 1,
        "packing": job["packing"],
        "max_length": None if job["padding_free"] and not job["packing"] else recipe["max_length"],
    }


def train(trainer: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Run a Trainer under the clock."""
    from transformers import TrainerCallback

    from qlora_core.model.lora_init import initialise

    clock = Clock()
    initialise(trainer.model, job["recipe"]["seed"])
    counting = trainer.data_collator = Counting(trainer.data_collator)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.step()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            clock.losses += [logs["loss"]] if "loss" in (logs or {}) else []

    trainer.add_callback(Watch())
    trainer.train()
    every = job["accumulation"]
    batches = counting.tokens[: job["steps"] * every]
    tokens = [sum(batches[at : at + every]) for at in range(0, len(batches), every)]
    return {"ends": clock.ends, "losses": clock.losses, "tokens": tokens}


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFTTrainer on transformers and PEFT."""
    from importlib.util import find_spec

    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    cap(job)
    model = base_model(job)
    if find_spec("flash_attn"):
        model.set_attn_implementation("flash_attention_2")
    arguments = SFTConfig(
        **trainer_arguments(job),
        gradient_checkpointing=bool(job["recompute"]),
        padding_free=job["padding_free"],
        use_liger_kernel=job["liger"],
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(job["recipe"]["model"]),
        train_dataset=dataset(job),
        peft_config=lora_config(job),
    )
    return train(trainer, job)


def unsloth(job: dict[str, Any]) -> dict[str, Any]:
    """Unsloth's own road: its model, its patched SFTTrainer."""
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(Path(job["folder"]) / "compiled")
    from unsloth import FastLanguageModel  # first of all: it patches the others as they are imported

    cap(job)
    from trl import SFTConfig, SFTTrainer

    recipe = job["recipe"]
    model, tokenizer = FastLanguageModel.from_pretrained(
        recipe["model"],
        max_seq_length=recipe["max_length"],
        dtype=None,
        load_in_4bit=recipe["method"] == "qlora-4",
        use_exact_model_name=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=recipe["lora_r"],
        target_modules=job["targets"],
        lora_alpha=recipe["lora_alpha"],
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing=job["recompute"],
        random_state=recipe["seed"],
    )
    arguments = SFTConfig(**trainer_arguments(job))
    trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=dataset(job), args=arguments)
    return train(trainer, job)


def plain(job: dict[str, Any]) -> dict[str, Any]:
    """A loop by hand on transformers and PEFT: padded batches, their gradients added up."""
    import torch
    from peft import get_peft_model

    from qlora_core.model.lora_init import initialise

    cap(job)
    model = get_peft_model(base_model(job), lora_config(job))
    initialise(model, job["recipe"]["seed"])
    if job["recompute"]:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    clock, tokens, order = Clock(), [], _order(job)
    rows = rows_of(job)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, schedule = _optimizer(parameters, job)
    wide = None if job["dtype"] == "float32" else getattr(torch, job["dtype"])
    for _ in range(job["steps"]):
        batches = [[rows[next(order)] for _ in range(job["batch"])] for _ in range(job["accumulation"])]
        supervised = sum(sum(row["supervised"][1:]) for batch in batches for row in batch)
        total = 0.0
        for batch in batches:
            with torch.autocast(job["device"], wide, enabled=wide is not None):
                loss = _padded_loss(model, batch) / supervised
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, job["recipe"]["max_grad_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step()
        clock.losses.append(total)
        tokens.append(sum(len(row["input_ids"]) for batch in batches for row in batch))
    return {"ends": clock.ends, "losses": clock.losses, "tokens": tokens}


def _padded_loss(model: Any, rows: list[dict[str, Any]]) -> Any:
    """Summed loss of a padded batch."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    device = next(model.parameters()).device
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    supervised = [torch.tensor(row["supervised"]) for row in rows]
    labels = [i.masked_fill(~on, -100) for i, on in zip(ids, supervised, strict=True)]
    inputs = pad_sequence(ids, batch_first=True).to(device)
    mask = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True).to(device)
    targets = pad_sequence(labels, batch_first=True, padding_value=-100).to(device)
    logits = model(input_ids=inputs, attention_mask=mask).logits[:, :-1].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(logits, targets[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def _order(job: dict[str, Any]) -> Any:
    """Row numbers in the order in which the Trainer draws them."""
    from itertools import count

    from accelerate.data_loader import SeedableRandomSampler

    for epoch in count():
        sampler = SeedableRandomSampler(range(job["num_rows"]), data_seed=job["recipe"]["seed"])
        sampler.set_epoch(epoch)
        yield from sampler


def _optimizer(parameters: list[Any], job: dict[str, Any]) -> tuple[Any, Any]:
    import math

    import torch
    from transformers import get_scheduler

    recipe, steps = job["recipe"], job["steps"]
    warmup = recipe["warmup_steps"]
    warmup = math.ceil(recipe["warmup_ratio"] * steps) if warmup is None else warmup
    optimizer = torch.optim.AdamW(parameters, lr=recipe["learning_rate"], weight_decay=recipe["weight_decay"])
    return optimizer, get_scheduler(recipe["lr_scheduler"], optimizer, warmup, steps)


CONTENDERS = {"trl": trl, "unsloth": unsloth, "plain": plain}


if __name__ == "__main__":
    main()
