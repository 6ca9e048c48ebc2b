"""What keeps Unsloth away, told without it; and what happens where it does not agree with the plain backend."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.models import random_examples, save_tiny_model, write_rows
from support.planning_facts import card_report, cpu_report
from support.plans import plan

from qlora_core import backends
from qlora_core.backends import parity
from qlora_core.backends.parity import Comparison, Steps, agreed, apart, few_steps, key
from qlora_core.backends.unsloth.requirements import missing, unfit
from qlora_core.data import TokenizedExample
from qlora_core.session.control import Control
from qlora_core.session.event_log import EventLog
from qlora_profiles import events, run_folder
from qlora_profiles.errors import EnvironmentProblem, Interrupted
from qlora_profiles.machine_store import MachineStore
from qlora_profiles.plan import RunPlan

pytestmark = pytest.mark.filterwarnings("default")

WHOLE = {
    "unsloth": "2026.10.9",
    "unsloth_zoo": "2026.10.9",
    "transformers": "5.17.0",
    "trl": "1.15.0",
    "datasets": "4.8.5",
    "triton": "3.7.0",
}
ROWS = [TokenizedExample(input_ids=e.input_ids, supervised=e.supervised) for e in random_examples(8, longest=30)]


def test_a_whole_machine_has_what_it_needs() -> None:
    assert missing(card_report(packages=WHOLE)) is None
    on_windows = {name: version for name, version in WHOLE.items() if name != "triton"} | {"triton-windows": "3.7.1"}
    assert missing(card_report(packages=on_windows, system="windows")) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"unsloth": None}, "not installed"),
        ({"unsloth": "2026.9.1"}, "needs unsloth>=2026.10.9; 2026.9.1 is here"),
        ({"unsloth_zoo": None}, "unsloth_zoo is missing"),
        ({"transformers": "5.17.1"}, "needs transformers<=5.17.0; 5.17.1 is here"),
        ({"transformers": "of my own"}, "needs transformers<=5.17.0; of my own is here"),
        ({"trl": "1.16.0"}, "needs trl<=1.15.0; 1.16.0 is here"),
        ({"trl": None}, "trl is missing"),
        ({"datasets": "5.0.0"}, "needs datasets<5; 5.0.0 is here"),
        ({"triton": None}, "Triton is missing"),
    ],
)
def test_the_first_thing_that_is_wrong_is_named(changed: dict[str, str | None], words: str) -> None:
    packages = {name: version for name, version in (WHOLE | changed).items() if version is not None}
    assert missing(card_report(packages=packages)) == words


def test_the_card_and_its_torch_count_too() -> None:
    ready = card_report(packages=WHOLE)
    two = msgspec.structs.replace(ready, gpus=ready.gpus * 2)
    old = msgspec.structs.replace(ready, gpus=(msgspec.structs.replace(ready.gpus[0], capability=(6, 1)),))
    new = msgspec.structs.replace(ready, torch=msgspec.structs.replace(ready.torch, version="2.15.0+cu130"))
    assert "CUDA" in str(missing(cpu_report()))
    assert "one card" in str(missing(two))
    assert "capability 7.0" in str(missing(old))
    assert missing(new) == "needs torch<2.15; 2.15.0+cu130 is here"


@pytest.mark.parametrize(
    ("model_type", "settings", "targets", "words"),
    [
        ("qwen3", {}, ["all-linear"], None),
        ("llama", {"method": "lora", "lora_dropout": 0.0}, ["q_proj", "v_proj"], None),
        ("gemma2", {}, ["all-linear"], "no kernels of its own for gemma2"),
        ("qwen3", {"method": "qlora-8"}, ["all-linear"], "qlora-4 and lora only"),
        ("qwen3", {"lora_dropout": 0.05}, ["all-linear"], "dropout"),
        ("qwen3", {"quant_type": "fp4"}, ["all-linear"], "nf4"),
        ("qwen3", {"double_quant": False}, ["all-linear"], "scales"),
        ("qwen3", {"compute_dtype": "float32"}, ["all-linear"], "16 bits"),
        ("qwen3", {"device": "cpu"}, ["all-linear"], "NVIDIA"),
        ("qwen3", {}, ["q_proj", "lm_head"], "not lm_head"),
    ],
)
def test_models_and_recipes_that_it_is_not_for(
    model_type: str, settings: dict[str, Any], targets: list[str], words: str | None
) -> None:
    reason = unfit(model_type, settings, targets)
    assert reason is None if words is None else words in str(reason)


@pytest.fixture
def on_unsloth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPlan:
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path / "cache"))
    model, data = save_tiny_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    (tmp_path / "out").mkdir()
    return plan(model, data, tmp_path / "out", backend="unsloth")


def test_it_does_not_start_where_it_cannot_run(on_unsloth: RunPlan) -> None:
    with pytest.raises(EnvironmentProblem, match="backend unsloth cannot run here: needs an NVIDIA card"):
        backends.begin(on_unsloth)


def warnings_of(plan: RunPlan) -> list[str]:
    found = events.all_events(Path(plan.run_values().output) / run_folder.EVENTS)
    return [e.message for e in found if isinstance(e, events.WarningEvent)]


def settled(plan: RunPlan) -> RunPlan:
    log = EventLog(Path(plan.run_values().output))
    try:
        return agreed(plan, ROWS, log, Control())
    finally:
        log.close()


def test_a_side_that_cannot_be_computed_leaves_the_plain_backend(on_unsloth: RunPlan) -> None:
    """Both children really run; Unsloth's ends because this machine has no card."""
    after = settled(on_unsloth)
    assert after.execution_values().backend == "peft"
    assert after.recipe_digest() == on_unsloth.recipe_digest()
    assert "unsloth did not get through a few steps" in warnings_of(on_unsloth)[0]


@pytest.mark.parametrize(("loss_apart", "norm_apart", "kept"), [(0.001, 0.01, "unsloth"), (0.03, 0.0, "peft")])
def test_a_comparison_is_kept_and_believed(
    on_unsloth: RunPlan, loss_apart: float, norm_apart: float, kept: str
) -> None:
    store = MachineStore(parity.KIND, Comparison)
    assert store.write(key(on_unsloth), Comparison(loss_apart=loss_apart, norm_apart=norm_apart))
    assert settled(on_unsloth).execution_values().backend == kept
    assert (kept == "peft") == any("losses differ by 3.0e-02" in message for message in warnings_of(on_unsloth))


def test_what_a_comparison_holds_for(on_unsloth: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    other = parity.on_backend(on_unsloth, "peft", "")
    assert key(on_unsloth) != key(other)
    before = key(on_unsloth)
    monkeypatch.setattr(parity, "versions", lambda: {"torch": "9.9"})
    assert key(on_unsloth) != before


def test_stopping_ends_the_comparison(on_unsloth: RunPlan) -> None:
    stop = Control()
    stop.set()
    log = EventLog(Path(on_unsloth.run_values().output))
    with pytest.raises(Interrupted):
        agreed(on_unsloth, ROWS, log, stop)
    log.close()


def test_differences_are_relative_and_a_lost_number_is_one() -> None:
    assert apart((2.0, 4.0), (2.0, 3.0)) == pytest.approx(0.25)
    assert apart((1.0,), (float("nan"),)) == float("inf")


def test_a_few_steps_learn_and_depend_on_the_gradient(on_unsloth: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = parity.on_backend(on_unsloth, "peft", "")
    examples = [row.input_ids for row in ROWS]
    steps = few_steps(plain, examples)
    assert steps.losses[0] > steps.losses[1] > steps.losses[2]
    assert few_steps(plain, examples) == steps
    monkeypatch.setattr(parity, "LEARNING_RATE", 0.0)
    idle = few_steps(plain, examples)
    assert idle.losses[0] == steps.losses[0]
    assert apart(steps.losses, idle.losses) > parity.LOSS_TOLERANCE


def test_an_answer_is_read_past_whatever_was_printed() -> None:
    said = "banner\n" + parity.ANSWER + json.dumps({"losses": [1.0], "norms": [2.0]}) + "\n"
    assert parity._answer("unsloth", 0, said) == Steps(losses=(1.0,), norms=(2.0,))
    with pytest.raises(parity.ComparisonFailed, match="unsloth did not get through a few steps \\(boom\\)"):
        parity._answer("unsloth", 1, "banner\nboom\n")
