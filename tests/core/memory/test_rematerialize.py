"""What backward makes again is what forward made, and is not kept meanwhile."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.adapted import adapted, assert_same, computed
from support.cost_inputs import INPUTS
from support.models import random_examples
from support.plain_kernels import KERNELS
from torch import Tensor
from torch.nn.functional import silu

from qlora_core.backends.packed_loss import packed_loss
from qlora_core.kernels.fused_lora import fuse_adapters
from qlora_core.kernels.norm_rope_swiglu import LayerKernels, fuse_layers
from qlora_core.memory.checkpointed_layers import recompute_layers
from qlora_core.memory.rematerialize import rematerializable, source_of
from qlora_core.model.packing import pack
from qlora_run.model_facts import discover_targets
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.model_facts.summary import summarise
from qlora_run.planner.cost.activations import layer_cost
from qlora_run.planner.cost.inputs import CostInputs


class Overwriting(torch.autograd.Function):
    """An activation whose backward writes gradients over what it kept, as Liger's does."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.kept = gate, up
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.kept
        sigmoid = torch.sigmoid(gate)
        of_up = grad_outputs[0] * gate * sigmoid
        of_gate = grad_outputs[0] * up * sigmoid * (1 + gate * (1 - sigmoid))
        with torch.no_grad():
            gate.data.copy_(of_gate)
            up.data.copy_(of_up)
        return gate.data, up.data


def overwriting(gate: Tensor, up: Tensor) -> Tensor:
    result: Tensor = Overwriting.apply(gate, up)  # type: ignore[no-untyped-call]
    return result


OVERWRITING = replace(KERNELS, silu=overwriting)


def fused(family: str, rematerialize: bool, recomputed: int = 0, kernels: LayerKernels = KERNELS) -> Any:
    model = adapted(family)
    recompute_layers(model.get_base_model(), recomputed, False)
    warned: list[str] = []
    fuse_layers(model.get_base_model(), [kernels], torch.float32, warned.append).rematerialize = rematerialize
    fuse_adapters(model, model.get_base_model().get_decoder(), torch.float32)
    assert warned == []
    return model


@pytest.mark.parametrize("recomputed", [0, 2, 3])
@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3_text"])
def test_the_same_gradient(family: str, recomputed: int) -> None:
    assert_same(computed(fused(family, True, recomputed)), computed(fused(family, False)), 1e-6)


@pytest.mark.parametrize("recomputed", [0, 3])
def test_before_a_kernel_writes_over_what_it_was_made_of(recomputed: int) -> None:
    expected = computed(fused("qwen3", False))
    assert_same(computed(fused("qwen3", True, recomputed, OVERWRITING)), expected, 1e-6)


def kept_bytes(model: Any) -> int:
    """What autograd keeps from forward to backward, each storage once, without parameters."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        computed(model)
    return sum(seen.values())


def test_the_planner_counts_what_is_not_kept() -> None:
    tokens = 0

    def norm(x: Tensor, *rest: Any) -> Tensor:
        nonlocal tokens
        tokens = max(tokens, x.shape[1] if x.dim() == 3 else 0)
        return KERNELS.norm(x, *rest)

    usual, less = (
        kept_bytes(fused("llama", rematerialize, 0, replace(KERNELS, norm=norm))) for rematerialize in (False, True)
    )
    config = adapted("llama").config.to_dict()
    facts = summarise("tiny", config, tensors_from_config(config, "tiny"), exact=True, fingerprint="")
    targets = discover_targets(facts, ("all-linear",))
    same = INPUTS | {"method": "lora", "compute_dtype": "float32", "fused_kernels": True, "fused_adapters": True}
    all_inputs = (CostInputs(**same, rematerialize_activations=rematerialize) for rematerialize in (False, True))
    counted, rematerialized = (layer_cost(facts, facts.layers[0], targets, each).kept_token for each in all_inputs)
    first = 4 * facts.hidden_size * tokens  # nothing is trained below the first norm: only now its input is kept
    assert usual - less == (counted - rematerialized) * facts.num_layers * tokens - first


def test_only_what_was_asked_to_remember_does() -> None:
    x = torch.ones(2, 3)
    assert source_of(x) is None
    assert source_of(rematerializable(lambda t: 2 * t, lambda: False)(x)) is None
    doubled = rematerializable(lambda t: 2 * t, lambda: True)(x)
    source = source_of(doubled)
    assert source is not None
    assert torch.equal(source.function(*source.inputs), doubled)


@pytest.mark.parametrize("recomputed", [0, 3])
def test_layers_that_recompute_keep_nothing_of_it(recomputed: int) -> None:
    gates: list[weakref.ref[Any]] = []

    def silu_seen(gate: Tensor, up: Tensor) -> Tensor:
        gates.append(weakref.ref(gate.untyped_storage()))
        return KERNELS.silu(gate, up)

    model = fused("qwen3", True, recomputed, replace(KERNELS, silu=silu_seen))
    gates.clear()
    loss_sum = packed_loss(model, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=None)
    gates.clear()
    loss = loss_sum(pack(random_examples(3, seed=2), torch.device("cpu")))
    gc.collect()
    assert len(gates) == 3
    assert sum(gate() is not None for gate in gates) == (3 if recomputed == 0 else 0)
    loss.backward()
