"""What must hold of any plan, whatever the machine, the model and the values."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.planning_facts import asking, card_report, data_of, known

from qlora_core.execution.graph_sizes import LARGEST_GRAPHED_TOKENS
from qlora_profiles.errors import QloraRunError
from qlora_profiles.plan import RunPlan
from qlora_run.planner import resolve
from qlora_run.planner.search.fit import WORTH_PRECISION
from qlora_run.planner.search.search import NEAR_TIE

NAMES = st.sampled_from(
    ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "google/gemma-3-4b-it", "microsoft/phi-4")
)
VRAM = st.floats(2, 100)
LENGTHS = st.integers(16, 12_000)


def attempt(vram_gib: float, name: str, longest: int, **values: Any) -> RunPlan | None:
    data = data_of(longest=longest, mean=max(8.0, longest / 4))
    try:
        return resolve(card_report(vram_gib), asking(**values), known(name), data)
    except QloraRunError:
        return None


@given(vram=VRAM, more=st.floats(0, 40), name=NAMES, longest=LENGTHS, method=st.sampled_from(("qlora-4", "lora")))
def test_more_vram_never_gives_a_slower_plan(vram: float, more: float, name: str, longest: int, method: str) -> None:
    small = attempt(vram, name, longest, method=method, max_length=8192)
    large = attempt(vram + more, name, longest, method=method, max_length=8192)
    if small is not None:
        assert large is not None
        assert large.time.step_seconds <= NEAR_TIE * small.time.step_seconds


@given(vram=VRAM, more=st.floats(0, 40), name=NAMES, longest=LENGTHS)
def test_nor_does_it_where_the_method_may_change_too(vram: float, more: float, name: str, longest: int) -> None:
    """Full precision may cost what it is worth, no more."""
    small, large = attempt(vram, name, longest), attempt(vram + more, name, longest)
    if small is not None:
        assert large is not None
        assert large.time.step_seconds <= NEAR_TIE * (1 + WORTH_PRECISION) * small.time.step_seconds


@given(name=NAMES, longest=LENGTHS, length=st.integers(64, 8192), more=st.integers(0, 4096), graphs=st.booleans())
@example(name="Qwen/Qwen3-0.6B", longest=11080, length=64, more=789, graphs=True)
def test_a_longer_max_length_never_takes_less(name: str, longest: int, length: int, more: int, graphs: bool) -> None:
    """With one execution: the fastest one for short examples may well be one that takes more."""
    fixed = {"layers_recomputed": 20, "token_budget": 512, "method": "qlora-4", "offload_activations": False}
    fixed |= {"cuda_graphs": graphs and length + more <= LARGEST_GRAPHED_TOKENS}
    short = attempt(1000, name, longest, max_length=length, **fixed)
    long = attempt(1000, name, longest, max_length=length + more, **fixed)
    assert short is not None
    assert long is not None
    assert short.memory.peak_bytes <= long.memory.peak_bytes


WISHES = st.fixed_dictionaries(
    {},
    optional={
        "token_budget": st.integers(1, 40_000),
        "layers_recomputed": st.integers(0, 60),
        "method": st.sampled_from(("qlora-4", "qlora-8", "lora", "full")),
        "max_length": st.integers(1, 50_000),
        "lora_r": st.integers(1, 256),
        "attention": st.sampled_from(("varlen", "sdpa", "flash")),
        "loss_kernel": st.sampled_from(("chunked", "triton", "logits")),
        "loss_chunk_tokens": st.integers(1, 4096),
        "compute_dtype": st.sampled_from(("bfloat16", "float16", "float32")),
        "optimizer": st.sampled_from(("adamw", "adamw-8bit")),
        "optimizer_kernel": st.sampled_from(("fused", "plain", "paged")),
        "workers": st.integers(0, 8),
        "vram_budget_bytes": st.integers(1, 2**36),
        "target_modules": st.sampled_from((("q_proj",), ("q_proj", "v_proj"))),
    },
)


@given(vram=VRAM, name=NAMES, longest=LENGTHS, values=WISHES)
def test_a_persons_values_are_kept_or_refused(vram: float, name: str, longest: int, values: dict[str, Any]) -> None:
    plan = attempt(vram, name, longest, **values)
    if plan is None:
        return
    for setting, value in values.items():
        resolved = plan.recipe.get(setting) or plan.execution[setting]
        assert resolved.value == value
        assert resolved.source == "cli"
    assert plan.memory.fits


@given(vram=VRAM, name=NAMES, longest=LENGTHS)
def test_a_plan_fits_and_keeps_the_recipe_of_every_machine(vram: float, name: str, longest: int) -> None:
    """The same values are the same recipe wherever they fit."""
    here, there = (attempt(size, name, longest, method="qlora-4", max_length=4096) for size in (vram, 1000))
    if here is None:
        return
    assert there is not None
    assert here.memory.fits or here.memory.close
    assert here.recipe_digest() == there.recipe_digest()


def test_the_same_inputs_give_the_same_plan() -> None:
    plans = [attempt(12, "Qwen/Qwen3-8B", 1804) for _ in range(2)]
    assert plans[0] is not None
    assert plans[0] == plans[1]


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 257])
def test_the_shortest_data_gets_a_plan(tokens: int) -> None:
    plan = attempt(8, "Qwen/Qwen3-0.6B", tokens)
    assert plan is not None
    assert plan.recipe["max_length"].value >= tokens
