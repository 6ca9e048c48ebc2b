"""Decoder layers of several shapes: read from headers, layer by layer, and listed in groups."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.planning_facts import asking, card_report, data_of, known, write_checkpoint

from qlora_profiles.facts import LayerGroup, ModelFacts
from qlora_run.model_facts import discover_targets, read_model_facts
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.model_facts.safetensors_header import TensorInfo
from qlora_run.planner import resolve
from qlora_run.planner.cost.weights import adapter_params
from qlora_run.terminal.plan_view import plan_text

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
TWO_WIDTHS = SIZES | {
    "model_type": "gemma4_text",
    "sliding_window": 32,
    "layer_types": [("full" if index % 6 == 5 else "sliding") + "_attention" for index in range(12)],
}
LINEAR = SIZES | {
    "model_type": "qwen3_next",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "tie_word_embeddings": False,
}


def two_widths() -> dict[str, tuple[int, ...]]:
    """Windowed layers with narrow heads, every sixth without a window with wide ones; the MLPs of the last four are
    twice as wide."""
    shapes: dict[str, tuple[int, ...]] = {"model.language_model.embed_tokens.weight": (512, 64)}
    for index in range(12):
        width, keys = (32, 1) if index % 6 == 5 else (16, 2)
        inner = 192 if index >= 8 else 96
        layer = {"q_proj": (4 * width, 64), "k_proj": (keys * width, 64), "v_proj": (keys * width, 64)}
        layer |= {"o_proj": (64, 4 * width)}
        layer |= {"q_norm": (width,), "k_norm": (width,)}  # type: ignore[dict-item]
        rest = {f"self_attn.{name}": shape for name, shape in layer.items()}
        rest |= {"mlp.gate_proj": (inner, 64), "mlp.up_proj": (inner, 64), "mlp.down_proj": (64, inner)}
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        rest |= {f"{norm}_layernorm": (64,) for norm in norms}  # type: ignore[misc]
        shapes |= {f"model.language_model.layers.{index}.{name}.weight": shape for name, shape in rest.items()}
    return shapes


def linear_beside_attention() -> dict[str, tuple[int, ...]]:
    """Three layers with a recurrence and a convolution, then one with attention; experts in all but the first."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (512, 64), "lm_head.weight": (512, 64)}
    for index in range(12):
        rest: dict[str, tuple[int, ...]] = {f"{at}_layernorm.weight": (64,) for at in ("input", "post_attention")}
        if index % 4 == 3:
            rest |= {f"self_attn.{n}_proj.weight": s for n, s in {"q": (128, 64), "k": (32, 64), "v": (32, 64)}.items()}
            rest |= {"self_attn.o_proj.weight": (64, 64), "self_attn.q_norm.weight": (16,)}
        else:
            rest |= {"linear_attn.in_proj_qkvz.weight": (192, 64), "linear_attn.in_proj_ba.weight": (8, 64)}
            rest |= {"linear_attn.out_proj.weight": (64, 64), "linear_attn.conv1d.weight": (128, 1, 4)}
            rest |= {"linear_attn.A_log": (4,), "linear_attn.dt_bias": (4,), "linear_attn.norm.weight": (16,)}
        if index == 0:
            rest |= {f"mlp.{name}_proj.weight": (96, 64) for name in ("gate", "up")}
            rest |= {"mlp.down_proj.weight": (64, 96)}
        else:
            rest |= {"mlp.gate.weight": (4, 64)}
            rest |= {f"mlp.experts.{e}.{n}_proj.weight": (32, 64) for e in range(4) for n in ("gate", "up")}
            rest |= {f"mlp.experts.{e}.down_proj.weight": (64, 32) for e in range(4)}
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in rest.items()}
    return shapes


def facts_of(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> ModelFacts:
    tensors = {name: TensorInfo("BF16", shape) for name, shape in shapes.items()}
    facts = read_model_facts(str(write_checkpoint(folder / "m", config, tensors)))
    assert facts.params == sum(tensor.params for tensor in tensors.values())
    order, counts = facts.group_of_each, [group.count for group in facts.layers]
    assert [order.count(place) for place in range(len(facts.layers))] == counts
    return facts


def test_layers_of_two_head_widths_and_two_mlp_widths(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, TWO_WIDTHS, two_widths())
    said = [(g.count, g.kind, g.num_heads, g.num_kv_heads, g.head_dim, g.intermediate_size) for g in facts.layers]
    assert said == [
        (7, "sliding attention", 4, 2, 16, 96),
        (1, "attention", 4, 1, 32, 96),
        (3, "sliding attention", 4, 2, 16, 192),
        (1, "attention", 4, 1, 32, 192),
    ]
    assert facts.layer_order == (0, 0, 0, 0, 0, 1, 0, 0, 2, 2, 2, 3)
    assert (facts.num_layers, facts.head_dim) == (12, 32)
    assert [group.sliding_window for group in facts.layers] == [32, None, 32, None]
    assert {(group.layer_norms, group.post_norms, group.query_key_norms) for group in facts.layers} == {(4, True, True)}


def test_linear_attention_and_experts_beside_attention(tmp_path: Path) -> None:
    """The names tell: this config lists no kinds. A convolution's weight counts, though it is no linear layer."""
    facts = facts_of(tmp_path, LINEAR, linear_beside_attention())
    dense, linear, attention = facts.layers
    assert [(g.count, g.kind) for g in facts.layers] == [
        (1, "linear attention"),
        (8, "linear attention"),
        (3, "attention"),
    ]
    assert (dense.experts_per_token, linear.experts_per_token, attention.expert_size) == (0, 2, 32)
    assert facts.experts_per_token == 2
    assert (linear.num_heads, linear.head_dim, linear.layer_norms) == (0, 0, 2)
    assert [shape.name.rsplit(".", 1)[-1] for shape in linear.linears] == ["in_proj_ba", "in_proj_qkvz", "out_proj"]
    assert linear.params - linear.linear_params == 128 * 4 + 4 * 64 + 4 * 3 * 32 * 64
    assert facts.layer_linear_params == dense.params + 8 * linear.params + 3 * attention.params
    met = facts.layer_linear_params - facts.met_linear_params
    assert met == 11 * 2 * 3 * 32 * 64


def test_targets_are_counted_where_they_are(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, LINEAR, linear_beside_attention())
    everything = discover_targets(facts, ("all-linear",))
    assert {shape.name.rsplit(".", 1)[-1] for shape in everything} == {
        *("in_proj_ba", "in_proj_qkvz", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj")
    }
    of_linear, of_attention = (200 + 3 * 64) + (64 + 64) - 64, (128 + 64) + 2 * (32 + 64) + 128
    assert adapter_params(facts, everything, 2) == 2 * (9 * of_linear + 3 * of_attention)
    assert adapter_params(facts, discover_targets(facts, ("q_proj",)), 2) == 2 * 3 * (128 + 64)


@pytest.mark.parametrize("family", ["gemma4_text", "qwen3_next"])
def test_real_checkpoints(family: str, tmp_path: Path) -> None:
    """transformers writes them; the groups must hold what its own model has, layer by layer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    own: dict[str, dict[str, Any]] = {
        "gemma4_text": {"global_head_dim": 32, "use_double_wide_mlp": True, "num_kv_shared_layers": 4}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 512},
        "qwen3_next": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        | {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "shared_expert_intermediate_size": 48},
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | own[family]))
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    facts = read_model_facts(str(tmp_path))
    assert facts.params == sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())
    assert len(facts.layers) > 1
    for layer, place in zip(model.get_decoder().layers, facts.group_of_each, strict=True):
        group = facts.layers[place]
        assert group.params == sum(p.numel() for p in layer.parameters() if p.dim() > 1)
        for shape in group.linears:
            weight = layer.get_submodule(shape.name).weight
            assert tuple(weight.shape) == (shape.out_features, shape.in_features)
        assert ("linear_attn" in dict(layer.named_children())) == (group.kind == "linear attention")


PATTERNS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "qwen3"}, "aaaaaaaaaaaa"),
    ({"model_type": "mistral", "sliding_window": 32}, "ssssssssssss"),
    ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": False}, "aaaaaaaaaaaa"),
    ({"model_type": "qwen2", "sliding_window": 32, "max_window_layers": 9}, "aaaaaaaaasss"),
    ({"model_type": "gemma2", "sliding_window": 32}, "sasasasasasa"),
    ({"model_type": "gemma3_text", "sliding_window": 32}, "sssssassssa"[:6] * 2),
    ({"model_type": "gemma3_text", "sliding_window": 32, "sliding_window_pattern": 3}, "ssassassassa"),
    ({"model_type": "qwen3", "layer_types": ["chunked_attention", "full_attention"] * 6}, "cacacacacaca"),
]


@pytest.mark.parametrize(("config", "kinds"), PATTERNS)
def test_kinds_from_a_config_alone(config: dict[str, Any], kinds: str, tmp_path: Path) -> None:
    whole = SIZES | config
    tensors = tensors_from_config(whole, "x")
    facts = facts_of(tmp_path, whole, {name: tensor.shape for name, tensor in tensors.items()})
    assert "".join(facts.layers[place].kind[0] for place in facts.group_of_each) == kinds
    assert bool(facts.layer_order) == (len(facts.layers) > 1)


def test_a_group_alone_knows_no_order() -> None:
    facts = known("Qwen/Qwen3-8B")
    assert facts.layer_order == ()
    assert facts.group_of_each == (0,) * 36
    one = facts.layers[0]
    assert isinstance(one, LayerGroup)
    assert (one.count, one.kind, one.linear_params) == (36, "attention", one.params)


def test_the_full_plan_names_the_groups(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, LINEAR, linear_beside_attention())
    plan = resolve(card_report(), asking(), facts, data_of())
    full = re.sub(r"\s+", " ", plan_text(plan, width=100, full=True))
    assert "12 layers: 1 linear attention of 0.0M, 8 linear attention of 0.0M, 3 attention" in full
    assert "9 of 12 layers have no attention (linear attention)" in full
    assert "12 layers:" not in plan_text(plan)
    alike = resolve(card_report(), asking(), known("Qwen/Qwen3-8B"), data_of())
    assert "layers:" not in plan_text(alike, full=True)
