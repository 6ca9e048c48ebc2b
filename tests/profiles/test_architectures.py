"""What is claimed of each model family, held against transformers' own code; and that nothing else knows a family."""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import SIZES, random_examples, save_tiny_model, tiny_model
from support.plain_kernels import KERNELS
from support.planning_facts import asking, card_report, data_of
from torch import Tensor, nn

from qlora_core.backends.packed_loss import packed_loss
from qlora_core.backends.peft.backend import add_adapters
from qlora_core.backends.unsloth.requirements import unfit
from qlora_core.data.chat.template_families import TEMPLATE_FAMILIES, pick_template_family
from qlora_core.kernels.attention import implementation
from qlora_core.kernels.cross_entropy import head_of
from qlora_core.kernels.fused_lora import fuse_adapters
from qlora_core.kernels.norm_rope_swiglu import fuse_layers
from qlora_core.memory.checkpointed_layers import decoder_layers, recompute_layers
from qlora_core.model.packing import pack
from qlora_core.model.parts import text_decoder
from qlora_profiles.architectures import ARCHITECTURES, UNKNOWN, Architecture, architecture_of
from qlora_profiles.settings import Recipe
from qlora_run.model_facts import discover_targets, read_model_facts
from qlora_run.model_facts.config import own_logits
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.planner import resolve

ROOT = Path(__file__).parents[2]
ALL = sorted(ARCHITECTURES)
TEXT_ONLY = [name for name in ALL if ARCHITECTURES[name].decoder == "model"]
LIGER = {"liger-kernel": "0.8.5", "triton": "3.7.0", "bitsandbytes": "0.50.2"}
NEITHER_TEXT_NOR_SENSE = ("multi_modal_projector",)

every_family = pytest.mark.parametrize("name", ALL)


@cache
def built(name: str) -> Any:
    """A tiny model that no test changes."""
    return tiny_model(name).eval()


@cache
def usual(name: str) -> Any:
    """The text part of the config that a family's code has by default."""
    from transformers import AutoConfig

    return AutoConfig.for_model(name).get_text_config()


def first_layer(name: str) -> Any:
    return decoder_layers(built(name))[0]


def ids(length: int = 12) -> Tensor:
    return torch.arange(3, 3 + length)[None]


def last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def named_parts(name: str, kind: str) -> dict[str, nn.Module]:
    """The modules of a layer whose class has a name that ends so, by last name."""
    return {last(at): part for at, part in first_layer(name).named_modules() if type(part).__name__.endswith(kind)}


@every_family
def test_decoder_embedding_and_head_lie_there(name: str) -> None:
    model, family = built(name), architecture_of(name)
    assert text_decoder(model) is model.get_decoder()
    names = {last(at) for at, part in model.named_modules() if part is text_decoder(model).embed_tokens}
    assert names == {*family.embedding}
    assert model.get_input_embeddings() is text_decoder(model).embed_tokens
    assert getattr(model, family.head[0]) is model.get_output_embeddings()
    assert len(decoder_layers(model)) == SIZES["num_hidden_layers"]


@every_family
def test_other_senses_are_told_by_their_names(name: str) -> None:
    model, family = built(name), architecture_of(name)
    text = {*text_decoder(model).parameters(), *model.get_output_embeddings().parameters()}
    for at, parameter in model.named_parameters():
        other = any(part in at for part in (*family.beside_text, *NEITHER_TEXT_NOR_SENSE))
        assert other == (parameter not in text), at


@every_family
def test_what_a_config_may_leave_out(name: str) -> None:
    defaults = dict(architecture_of(name).config_defaults)
    if every := defaults.pop("sliding_window_pattern", None):
        sees_all = [at + 1 for at, kind in enumerate(usual(name).layer_types) if kind == "full_attention"]
        assert sees_all == list(range(every, len(usual(name).layer_types) + 1, every))
    for key, value in defaults.items():
        assert getattr(usual(name), key) == value, key


@every_family
def test_windows_where_the_code_has_them(name: str) -> None:
    assert ("sliding attention" in architecture_of(name).layer_kinds) == hasattr(usual(name), "sliding_window")


@every_family
def test_linear_layers_by_what_they_read(name: str) -> None:
    projections, layer = architecture_of(name).projections, first_layer(name)
    linears = {last(at): part for at, part in layer.named_modules() if isinstance(part, nn.Linear)}
    mixture = bool(architecture_of(name).expert_counts)
    assert set(linears) == {*(projections.attention + projections.output if mixture else projections.names)}
    read: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_pre_hook(lambda _, inputs, at=at: read.update({at: inputs[0]}))
        for at, part in linears.items()
    ]
    built(name)(input_ids=ids(), use_cache=False)
    for hook in hooks:
        hook.remove()
    groups = (projections.attention, projections.output, projections.mlp, projections.down)
    inputs = [{id(read[at]) for at in group if at in read} for group in groups]
    assert all(len(group) == 1 for group in inputs[: 2 if mixture else 4])
    assert len(set().union(*inputs)) == sum(map(len, inputs))


@every_family
def test_biases_and_norms_of_heads(name: str) -> None:
    family, attention = architecture_of(name), first_layer(name).self_attn
    biased = {getattr(attention, each).bias is not None for each in family.projections.attention}
    assert biased == {family.qkv_bias}
    widths = [getattr(attention, each).weight.shape for each in ("q_norm", "k_norm") if hasattr(attention, each)]
    assert widths == ([(SIZES["head_dim"],)] * 2 if family.query_key_norms else [])


@every_family
def test_norms_by_name_and_how_they_are_computed(name: str) -> None:
    family, norms = architecture_of(name), named_parts(name, "RMSNorm")
    assert {*norms} - {"q_norm", "k_norm"} == {*family.layer_norms}
    assert family.norm_style is not None
    norm: Any = type(norms[family.layer_norms[0]])(64).bfloat16()
    draw = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=draw).bfloat16() for shape in ((64,), (8, 64)))
    norm.weight.data.copy_(weight)
    epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)
    if family.norms_in_float32:
        expected = (normed * (weight.float() + family.norm_style.offset)).bfloat16()
    else:
        expected = normed.bfloat16() * (weight + family.norm_style.offset)
    assert torch.equal(norm(x), expected)


def readers(name: str, chosen: Callable[[str, nn.Module], bool]) -> set[str]:
    """What autograd calls the functions that read the results of some modules of the decoder's layers."""
    model, made = built(name), []
    hooks = [
        part.register_forward_hook(lambda *a: made.append(a[2].grad_fn))
        for layer in decoder_layers(model)
        for at, part in layer.named_modules()
        if chosen(at, part)
    ]
    out = model(input_ids=ids(), use_cache=False).logits.sum()
    for hook in hooks:
        hook.remove()
    assert made
    waiting, seen, found = [out.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found |= {node.name() for before, _ in node.next_functions if before in made}
        waiting += [before for before, _ in node.next_functions]
    return found


@pytest.mark.parametrize("name", [name for name in ALL if not architecture_of(name).expert_counts])
def test_whether_nothing_but_linear_layers_reads_a_norm(name: str) -> None:
    style = architecture_of(name).norm_style
    assert style is not None
    found = readers(name, lambda at, part: last(at) in architecture_of(name).layer_norms)
    assert ("AddBackward0" not in found) == style.overwrites
    assert not style.overwrites or found <= {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"}


@pytest.mark.parametrize("name", [name for name in ALL if architecture_of(name).only_adds_mlp])
def test_nothing_reads_what_the_mlp_made_but_a_sum(name: str) -> None:
    assert readers(name, lambda at, part: at == "mlp") == {"AddBackward0"}


@every_family
def test_caps_and_scales(name: str) -> None:
    family, model = architecture_of(name), tiny_model(name).eval()
    assert bool(getattr(usual(name), "attn_logit_softcapping", None)) == family.caps_scores
    assert bool(getattr(usual(name), "final_logit_softcapping", None)) == family.caps_logits
    assert hasattr(decoder_layers(model)[0].self_attn, "attn_logit_softcapping") == (family.score_cap is not None)
    config = model.config.get_text_config()
    with torch.no_grad():
        before = model(input_ids=ids(), use_cache=False).logits
        for setting in (*UNKNOWN.logit_scales, "final_logit_softcapping"):
            own = getattr(config, setting, None)
            setattr(config, setting, 0.25)
            changed = not torch.equal(model(input_ids=ids(), use_cache=False).logits, before)
            assert changed == (setting in (*family.logit_scales, family.logit_cap)), setting
            scales = setting in family.logit_scales
            assert own_logits(config.to_dict()) == (head_of(model) is None) == scales
            setattr(config, setting, own)


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_tensors_are_told_from_a_config(name: str) -> None:
    model = built(name)
    found = {at: tuple(parameter.shape) for at, parameter in model.named_parameters()}
    planned = {at: tensor.shape for at, tensor in tensors_from_config(model.config.to_dict(), name).items()}
    assert planned == found


@every_family
def test_experts_and_routers_by_name(name: str) -> None:
    family, layer = architecture_of(name), first_layer(name)
    of_mlp = {at for at, _ in layer.named_parameters() if at.startswith("mlp.")}
    routed = {at for at, _ in layer.named_parameters() if {*at.split(".")} & {*family.routed}}
    assert routed == (of_mlp if family.expert_counts else set())


@every_family
def test_all_three_kinds_of_layer_kernels_or_none(name: str) -> None:
    model = tiny_model(name)
    fused = fuse_layers(model, (KERNELS,), torch.float32)
    assert {bool(parts) for parts in fused.replaced.values()} == {architecture_of(name).layer_kernels}


@every_family
def test_its_template_is_one_of_ours(name: str) -> None:
    own = architecture_of(name).template
    assert own is None or pick_template_family(TEMPLATE_FAMILIES[own].needs, own) == own


def test_a_models_own_template_comes_before_others_whose_tokens_are_there() -> None:
    tokens = TEMPLATE_FAMILIES["chatml"].needs + TEMPLATE_FAMILIES["gemma"].needs
    assert pick_template_family(tokens) == "chatml"
    assert pick_template_family(tokens, architecture_of("gemma2").template) == "gemma"
    assert pick_template_family(TEMPLATE_FAMILIES["chatml"].needs, architecture_of("gemma2").template) == "chatml"


def test_nothing_is_claimed_of_a_family_that_is_not_listed() -> None:
    family = architecture_of("something_new")
    claims = (family.only_adds_mlp, family.layer_kernels, family.unsloth, family.qkv_bias, family.norms_in_float32)
    assert not any(claims)
    assert {at for each in ARCHITECTURES.values() for at in each.projections.names} == {*family.projections.names}


def strings(path: Path) -> Iterator[str]:
    """The strings of a source file, but for what documents it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    spoken = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in spoken:
            yield node.value


def test_a_family_needs_no_other_place() -> None:
    """No other source names one, but for chat templates, some of which are called like their families."""
    templates = {*TEMPLATE_FAMILIES} & {*ARCHITECTURES}
    found = {
        (path.name, text)
        for package in ("launcher", "core", "profiles")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "architectures.py"
        for text in strings(path)
        if text in ARCHITECTURES
    }
    assert {text for name, text in found if name == "template_families.py"} <= templates
    assert {pair for pair in found if pair[0] != "template_families.py"} == set()


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> str:
    """A dense family that transformers and our list learn of here; its code is Llama's."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    class MadeUpConfig(LlamaConfig):
        model_type = "made_up"

    class MadeUpForCausalLM(LlamaForCausalLM):
        config_class = MadeUpConfig

    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})
    monkeypatch.setattr(MODEL_FOR_CAUSAL_LM_MAPPING, "_extra_content", {})
    AutoConfig.register("made_up", MadeUpConfig)
    AutoModelForCausalLM.register(MadeUpConfig, MadeUpForCausalLM)
    entry = Architecture(only_adds_mlp=True, layer_kernels=True, unsloth=True)
    monkeypatch.setitem(ARCHITECTURES, "made_up", entry)
    return "made_up"


def test_one_entry_is_all_that_a_new_family_needs(made_up: str, tmp_path: Path) -> None:
    """It is planned, loaded, adapted and computed as the family whose code it has."""
    from transformers import AutoModelForCausalLM

    plans, losses = [], []
    recipe = Recipe(model="m", method="lora", max_length=64, lora_r=2)
    for name in ("llama", made_up):
        folder = save_tiny_model(tmp_path / name, name)
        facts = read_model_facts(str(folder))
        assert tensors_from_config({**SIZES, "model_type": name}, name)
        assert len(discover_targets(facts, ("all-linear",))) == 7
        plans.append(resolve(card_report(packages=LIGER), asking(), facts, data_of()))
        assert unfit(facts.model_type, {}, ()) is None
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        loaded.set_attn_implementation(implementation("sdpa", loaded.config))
        model = add_adapters(loaded, recipe)
        together = [len(group.members) for group in fuse_adapters(model, text_decoder(model), torch.float32).groups]
        assert together == SIZES["num_hidden_layers"] * [3, 1, 2, 1]
        recompute_layers(loaded, 2, preserve_rng_state=False)
        layers = fuse_layers(loaded, (KERNELS,), torch.float32)
        assert all(layers.replaced.values())
        warned: list[str] = []
        loss_sum = packed_loss(
            model, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=None, warn=warned.append
        )
        assert not warned
        losses.append(float(loss_sum(pack(random_examples(3, seed=2), torch.device("cpu"))).detach()))
    assert losses[0] == losses[1]
    assert plans[0].execution == plans[1].execution
    assert plans[0].memory == plans[1].memory


def test_without_the_entry_it_is_planned_with_care(
    made_up: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = read_model_facts(str(save_tiny_model(tmp_path / made_up, made_up)))
    monkeypatch.delitem(ARCHITECTURES, made_up)
    plan = resolve(card_report(packages=LIGER), asking(), facts, data_of())
    assert plan.execution["layer_kernels"].value == "plain"
    assert "made_up" in plan.execution["layer_kernels"].reason


def test_layers_whose_weight_a_kernel_takes_get_no_adapter(tmp_path: Path) -> None:
    sizes = {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16}
    folder = save_tiny_model(tmp_path / "m", "falcon_h1", **sizes)
    planned = {
        shape.name.rsplit(".", 1)[-1] for shape in discover_targets(read_model_facts(str(folder)), ["all-linear"])
    }
    adapted = add_adapters(tiny_model("falcon_h1", **sizes), Recipe(model="m", method="lora", max_length=64))
    names = {name.rsplit(".", 2)[-2] for name, _ in adapted.named_modules() if name.endswith(".lora_A")}
    assert names == planned
    assert "in_proj" in names
    assert "out_proj" not in names
