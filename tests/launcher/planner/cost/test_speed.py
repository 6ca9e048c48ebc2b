"""The speed model against measurements of a real card, and what must hold of any estimate."""

from dataclasses import replace
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.measured import H200, Point, facts_of, points
from support.planning_facts import asking, card_report, cpu_report, data_of, known

from qlora_profiles.hardware import Gpu
from qlora_run.model_facts import discover_targets
from qlora_run.planner import resolve
from qlora_run.planner.cost.gpu_specs import card_of
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.memory import memory_costs
from qlora_run.planner.cost.rungs import work_with
from qlora_run.planner.cost.speed import estimate_time, rates, step_seconds, total_steps, work_of_step
from qlora_run.planner.search.search import NEAR_TIE

MODEL = known("Qwen/Qwen3-8B")
PLAN = resolve(card_report(gpus=(H200,)), asking(method="qlora-4"), MODEL, data_of())
SETUP = CostInputs.of(PLAN.recipe_values(), PLAN.execution_values())


def tokens_per_second(setup: CostInputs, examples: int, mean: float, budget: int, recomputed: int) -> float:
    costs = memory_costs(MODEL, discover_targets(MODEL, ("all-linear",)), setup)
    work = work_of_step(MODEL, data_of(longest=2048, mean=mean), setup, costs, examples, 2048)
    return work.step_tokens / step_seconds(work, rates(PLAN.report, H200, setup), budget, recomputed)


def seconds_at(point: Point) -> float:
    """The closed form for a measured step: examples of up to 2,048 tokens, all of them supervised."""
    model = facts_of(point.model)
    setup = point.setup(SETUP)
    costs = memory_costs(model, discover_targets(model, ("all-linear",)), setup)
    mean = min(point.tokens, 2048)
    data = data_of(longest=mean, mean=mean, mean_supervised_tokens=mean)
    work = work_of_step(model, data, setup, costs, point.tokens // mean, mean)
    work = work_with(work, {"layers_dequantized": point.layers_dequantized(model.num_layers)})
    layers = point.layers_recomputed(model.num_layers)
    return step_seconds(work, rates(PLAN.report, H200, setup), int(1.2 * point.tokens), layers)


def test_our_own_steps_on_a_real_card() -> None:
    """Those of a host with little else to do; the others were measured for their memory, beside other programs."""
    quiet = [point for point in points() if point.kernels in ("plain", "fused", "graphs")]
    ratios = {point: seconds_at(point) / (point.step_ms / 1000) for point in quiet}
    assert median(ratios.values()) == pytest.approx(1.0, abs=0.03)
    assert sum(abs(ratio - 1) <= 0.1 for ratio in ratios.values()) >= 0.75 * len(ratios)
    assert all(0.7 < ratio < 1.3 for ratio in ratios.values())


def test_steps_of_our_own_kernels_on_a_real_card() -> None:
    """Those that computing decides, or graphs; how fast the others were launched is another program's doing."""
    own = [p for p in points() if p.segments == "growing" and p.kernels in ("own", "own graphs", "rematerialized")]
    ratios = [1000 * seconds_at(p) / p.step_ms for p in own if p.graphs or p.tokens == 8192]
    assert len(ratios) == 23
    assert median(ratios) == pytest.approx(1.0, abs=0.03)
    assert all(0.9 < ratio < 1.1 for ratio in ratios)


def test_eager_attention_moves_every_score() -> None:
    eager = [point for point in points() if point.kernels == "eager"]
    assert all(0.8 < seconds_at(point) / (point.step_ms / 1000) < 1.2 for point in eager)


def test_small_micro_batches_are_bound_by_launches() -> None:
    """Four micro-batches measured 2.17 s where one was 0.56 s."""
    one = tokens_per_second(SETUP, 8, 177.5, 2048, 36)
    four = tokens_per_second(SETUP, 8, 177.5, 380, 36)
    assert one / four == pytest.approx(2.17 / 0.56, rel=0.15)


def test_a_measured_speed_moves_the_time_and_narrows_its_range() -> None:
    seconds = PLAN.time.step_seconds
    told = estimate_time(PLAN.report, H200, SETUP, 100, seconds, measured_scale=1.5)
    guessed = estimate_time(PLAN.report, H200, SETUP, 100, seconds)
    assert told.basis == "measured on this card"
    assert told.step_seconds == pytest.approx(1.5 * seconds)
    assert told.seconds_high / told.seconds_low < guessed.seconds_high / guessed.seconds_low


def test_offloading_takes_time() -> None:
    offloading = replace(SETUP, offload_activations=True)
    assert tokens_per_second(offloading, 16, 420, 4096, 36) < tokens_per_second(SETUP, 16, 420, 4096, 36)
    assert tokens_per_second(offloading, 16, 420, 4096, 0) == tokens_per_second(SETUP, 16, 420, 4096, 0)


@given(budget=st.integers(64, 65_536), more=st.integers(0, 8192), layers=st.integers(0, 35))
def test_larger_and_fewer_recomputed_is_never_slower(budget: int, more: int, layers: int) -> None:
    base = tokens_per_second(SETUP, 16, 420, budget, layers)
    assert tokens_per_second(SETUP, 16, 420, budget + more, layers) >= base / NEAR_TIE  # others may lie together
    assert tokens_per_second(SETUP, 16, 420, budget, layers + 1) <= base


def test_cards_by_name() -> None:
    def card(name: str, capability: tuple[int, int] | None = None) -> tuple[float, bool]:
        found = card_of(Gpu(name=name, capability=capability))
        return found.tflops, found.listed

    assert card("NVIDIA GeForce RTX 4070 Ti SUPER") == (88, True)
    assert card("NVIDIA GeForce RTX 4070 Ti") == (80, True)
    assert card("NVIDIA A100-SXM4-40GB") == (312, True)
    assert card("NVIDIA A10G")[0] < card("NVIDIA A100 80GB PCIe")[0]
    assert card("NVIDIA L4")[0] < card("NVIDIA L40S")[0]
    assert card("NVIDIA GeForce RTX 3060 Laptop GPU")[0] < card("NVIDIA GeForce RTX 3060")[0]
    assert card("Some Future Card", (12, 1)) == (60, False)
    assert card("Unknown") == (6, False)


def test_the_range_is_wider_where_less_is_known() -> None:
    def spread(name: str) -> tuple[float, str]:
        gpu = Gpu(name=name, capability=(8, 6), vram_total_bytes=24 * 2**30, vram_free_bytes=24 * 2**30)
        time = resolve(card_report(gpus=(gpu,)), asking(), MODEL, data_of()).time
        assert time.seconds_low < time.steps * time.step_seconds < time.seconds_high
        return time.seconds_high / time.seconds_low, time.basis

    known_card, unknown_card = spread("NVIDIA GeForce RTX 3090"), spread("NVIDIA Nobody Knows")
    assert known_card[0] < unknown_card[0]
    assert "data sheet" in known_card[1]
    assert "not in the table" in unknown_card[1]
    cpu = resolve(cpu_report(), asking(), known("Qwen/Qwen3-0.6B"), data_of()).time
    assert "CPU cores" in cpu.basis


def test_steps_of_a_run() -> None:
    assert total_steps(1950, 16, 3.0, None) == 366
    assert total_steps(100, 16, 0.5, None) == 4
    assert total_steps(1950, 16, 3.0, 20) == 20
    assert total_steps(1, 16, 0.1, None) == 1
    assert resolve(card_report(), asking(max_steps=7), MODEL, data_of()).time.steps == 7
