"""Mixtures of experts: adapters where the plan says, none on experts and routers."""

from pathlib import Path
from typing import Any

import pytest
from support.models import save_tokenizer, tiny_model

from qlora_core.backends.peft.backend import add_adapters, target_names
from qlora_core.model.lora_init import initialise
from qlora_profiles.settings import Recipe
from qlora_run.model_facts import discover_targets, read_model_facts
from qlora_run.planner.cost.weights import adapter_params

SIZES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    },
}


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {"model": "m", "method": "lora", "max_length": 64, "lora_r": 2}
    return Recipe(**(values | changes))


@pytest.mark.parametrize("family", SIZES)
def test_what_is_trained_is_what_the_plan_counts(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, tie_word_embeddings=False, **SIZES[family])
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    facts = read_model_facts(str(tmp_path))
    adapted = add_adapters(model, recipe())
    initialise(adapted, 0)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == adapter_params(
        facts, discover_targets(facts, ("all-linear",)), 2
    )
    assert not any("expert" in name or "mlp" in name for name in trained)


def test_a_persons_own_layers_are_left_as_they_are() -> None:
    assert target_names(recipe(target_modules=("q_proj", "gate")), None) == ["q_proj", "gate"]
