"""The promise of the whole design: a step's gradient does not depend on how it was computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.executions import running
from support.models import FAMILIES, PlainExample, random_examples, tiny_model

from qlora_core.backends.packed_loss import PackedLoss, packed_loss
from qlora_core.execution.layer_choice import choose_layers
from qlora_core.execution.limits import Limits
from qlora_core.memory.checkpointed_layers import decoder_layers, recompute_layers
from qlora_core.model.lora_init import initialise
from qlora_core.model.packing import Packed, pack, pack_all, supervised_tokens
from qlora_core.train.evaluate import evaluate
from qlora_core.train.execution import RunningExecution
from qlora_core.train.step import StepResult
from qlora_profiles.errors import EnvironmentProblem
from qlora_profiles.events import AdaptationEvent

CPU = torch.device("cpu")


def adapted(family: str = "qwen3", **changes: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_model(family, **changes), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    initialise(model, 7)
    with torch.no_grad():  # a zero lora_B would hide half of the gradient
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(3))
    return model.train()


def loss_function(model: Any, kernel: str = "chunked") -> PackedLoss:
    return packed_loss(model, attention="sdpa", kernel=kernel, chunk_tokens=16, autocast_dtype=None)


def runner(
    model: Any,
    budget: int,
    loss_sum: Callable[[Packed], torch.Tensor] | None = None,
    told: list[AdaptationEvent] | None = None,
) -> RunningExecution:
    return running(model, Limits(token_budget=budget, layers_recomputed=0), loss_sum or loss_function(model), told)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert got.keys() == expected.keys()
    scale = torch.stack([g.norm() for g in expected.values()]).norm()
    apart = torch.stack([(got[n] - expected[n]).norm() for n in expected]).norm()
    assert scale > 1e-3
    assert apart / scale < tolerance


def plain_gradient(model: Any, examples: list[PlainExample]) -> tuple[float, dict[str, torch.Tensor]]:
    """The textbook: each example alone through the model's own forward."""
    count = sum(supervised_tokens(e) for e in examples)
    total = 0.0
    for example in examples:
        logits = model(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0, :-1]
        supervised = torch.tensor(example.supervised[1:])
        targets = torch.tensor(example.input_ids[1:])
        loss = torch.nn.functional.cross_entropy(logits[supervised], targets[supervised], reduction="sum") / count
        loss.backward()
        total += loss.item()
    return total, gradients(model)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("budget", [1, 64, 10_000])
def test_any_cut_equals_separate_examples(family: str, budget: int) -> None:
    model, examples = adapted(family), random_examples(8, seed=2)
    loss, expected = plain_gradient(model, examples)
    result = runner(model, budget).run(examples)
    assert float(result.loss) == pytest.approx(loss, rel=1e-5)
    assert_same(gradients(model), expected)


def test_cut_1_2_and_8_ways_and_count_the_micro_batches() -> None:
    model = adapted()
    examples = [PlainExample(list(range(3, 23)), [i > 5 for i in range(20)]) for _ in range(8)]
    results = [(runner(model, budget).run(examples), gradients(model)) for budget in (160, 80, 20)]
    assert [r.micro_batches for r, _ in results] == [1, 2, 8]
    for result, gradient in results[1:]:
        assert float(result.loss) == pytest.approx(float(results[0][0].loss), rel=1e-6)
        assert_same(gradient, results[0][1])


@pytest.mark.parametrize("fails_at", [0, 1])
@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried to allocate", "[enforce] DefaultCPUAllocator: can't allocate memory"]
)
def test_out_of_memory_redoes_the_same_step(fails_at: int, message: str) -> None:
    model, examples = adapted(), random_examples(8, seed=5)
    _, expected = plain_gradient(model, examples)
    loss_sum, calls = loss_function(model), iter(range(1000))

    def failing(packed: Packed) -> torch.Tensor:
        if next(calls) == fails_at:
            raise RuntimeError(message)
        return loss_sum(packed)

    told: list[AdaptationEvent] = []
    result = runner(model, 140, failing, told).run(examples)
    assert_same(gradients(model), expected)
    assert [e.after["token_budget"] < e.before["token_budget"] for e in told] == [True]
    assert result.tokens == sum(len(e.input_ids) for e in examples)


def test_repeated_out_of_memory_shrinks_until_all_layers_recompute() -> None:
    model, examples = adapted(), random_examples(6, seed=4, longest=200)
    _, expected = plain_gradient(model, examples)
    loss_sum = loss_function(model)

    def small_card(packed: Packed) -> torch.Tensor:
        if not all(layer.gradient_checkpointing for layer in decoder_layers(model)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_sum(packed)

    told: list[AdaptationEvent] = []
    run = runner(model, 10_000, small_card, told)
    run.run(examples)
    assert_same(gradients(model), expected)
    assert run.limits.layers_recomputed == 3
    assert len(told) > 1


def test_when_nothing_fits_the_error_names_the_way_out() -> None:
    def never(packed: Packed) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(EnvironmentProblem, match=r"out of memory on an example of \d+ tokens.*--max-length"):
        runner(adapted(), 64, never).run(random_examples(3))


def test_another_error_is_not_taken_for_lack_of_memory() -> None:
    def broken(packed: Packed) -> torch.Tensor:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        runner(adapted(), 64, broken).run(random_examples(3))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_recomputing_layers_changes_no_gradient(count: int) -> None:
    model, examples = adapted(), random_examples(6, seed=9)
    runner(model, 64).run(examples)
    expected = gradients(model)
    recompute_layers(model.get_base_model(), count, False)
    assert sum(layer.gradient_checkpointing for layer in decoder_layers(model)) == count
    runner(model, 64).run(examples)
    assert_same(gradients(model), expected)


def test_chosen_layers_are_even() -> None:
    assert choose_layers(2, 4) == {0, 2}
    assert choose_layers(0, 4) == set()
    assert all(len(choose_layers(n, 36)) == n for n in range(37))


def test_every_loss_kernel_gives_the_same_step() -> None:
    model, examples = adapted(), random_examples(6, seed=11)
    results: list[tuple[StepResult, dict[str, torch.Tensor]]] = []
    for kernel in ("logits", "chunked"):
        results.append((runner(model, 64, loss_function(model, kernel)).run(examples), gradients(model)))
    for result, gradient in results[1:]:
        assert float(result.loss) == pytest.approx(float(results[0][0].loss), rel=1e-5)
        assert_same(gradient, results[0][1])


def test_a_head_that_is_more_than_a_linear_layer_is_computed_by_the_model_itself() -> None:
    model = adapted()
    inner = model.get_base_model()
    forward = inner.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out

    inner.forward = doubled
    told: list[str] = []
    loss = packed_loss(
        model, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=None, warn=told.append
    )
    assert loss.head is None
    assert "own forward" in told[0]
    examples = random_examples(4)
    _, expected = plain_gradient(model, examples)
    runner(model, 64, loss).run(examples)
    assert_same(gradients(model), expected)


def test_row_losses_do_not_depend_on_the_cut() -> None:
    model, examples = adapted().eval(), random_examples(7, seed=13)
    alone = evaluate(loss_function(model), examples, 1, CPU)
    together = evaluate(loss_function(model), examples, 10_000, CPU)
    assert together.row_losses == pytest.approx(alone.row_losses, rel=1e-5)
    assert together.loss == pytest.approx(alone.loss, rel=1e-5)


def test_an_example_without_supervised_tokens_adds_nothing() -> None:
    model, examples = adapted(), random_examples(4)
    runner(model, 1).run(examples)
    expected = gradients(model)
    runner(model, 1).run([*examples, PlainExample([5, 6, 7], [False] * 3)])
    assert_same(gradients(model), expected)


def test_pack_lays_examples_end_to_end() -> None:
    packed = pack([PlainExample([5, 6, 7], [True, False, True]), PlainExample([8, 9], [False, True])], CPU)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert packed.boundaries.tolist() == [0, 3, 5]
    assert (packed.supervised_at.tolist(), packed.targets.tolist(), packed.longest) == ([1, 3], [7, 9], 3)


def test_micro_batches_that_travel_together_are_those_packed_alone() -> None:
    examples = random_examples(7, seed=3)
    groups = [examples[:3], examples[3:4], examples[4:]]
    for together, alone in zip(pack_all(groups, CPU), [pack(group, CPU) for group in groups], strict=True):
        for name in ("input_ids", "position_ids", "boundaries", "supervised_at", "targets"):
            got, expected = getattr(together, name), getattr(alone, name)
            assert got.dtype == expected.dtype == (torch.int32 if name == "boundaries" else torch.long)
            assert got.tolist() == expected.tolist()
        assert together.longest == alone.longest


def test_pack_without_anything_supervised() -> None:
    packed = pack([PlainExample([5, 6, 7], [True, False, False])], CPU)
    assert (packed.num_tokens, len(packed.targets), packed.boundaries.tolist()) == (3, 0, [0, 3])
