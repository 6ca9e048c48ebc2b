"""What users of other trainers suffer, entry by entry: which check or which rule of the plan catches it here.

The table names the catcher; the function beside it makes the trouble and looks whether it is caught.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.doctor_contexts import broke, context, found, machine, with_card
from support.planning_facts import asking, card_report, data_of, known

from qlora_core.execution.limits import Limits
from qlora_core.memory.device_memory import DeviceMemory
from qlora_core.model.packing import Packed
from qlora_core.train.execution import RunningExecution
from qlora_profiles.errors import QloraRunError, UserError
from qlora_profiles.hardware import HardwareReport, Platform
from qlora_profiles.machines import load_machine
from qlora_profiles.plan import RunPlan
from qlora_profiles.registry import settings
from qlora_profiles.units import GIB
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.registry import CHECKS
from qlora_run.planner import resolve
from qlora_run.planner.rules.table import RULES

CHECK_IDS = {check.id for check in CHECKS}
PLAN_RULES = {rule.name for rule in RULES} | settings().keys() | {"memory", "disk", "recipe digest", "data facts"}


def planned(report: HardwareReport | None = None, model: str = "Qwen/Qwen3-4B", **given: Any) -> RunPlan:
    return resolve(report or card_report(12), asking(**given), known(model), data_of())


def verdict(made: CheckContext, id: str) -> str:
    return found(made)[id].verdict


def refuses(words: str, report: HardwareReport | None = None, **given: Any) -> bool:
    with pytest.raises(QloraRunError, match=words):
        planned(report, **given)
    return True


def spill() -> bool:
    windows, wsl = context(machine("windows-12gb")), context(machine("wsl-16gb"))
    return verdict(windows, "spill") == verdict(wsl, "spill") == "note"


def capped() -> bool:
    budget = planned(machine("windows-12gb")).execution["vram_budget_bytes"].value
    return bool(budget < (machine("windows-12gb").gpus[0].vram_free_bytes or 0))


@dataclass(frozen=True)
class Row:
    input_ids: tuple[int, ...]
    supervised: tuple[bool, ...]


class Tight:
    """A loss_function on a card with room for so many tokens."""

    def __init__(self, most_tokens: int) -> None:
        self.most_tokens = most_tokens

    def __call__(self, packed: Packed) -> torch.Tensor:
        return self.token_losses(packed).sum()

    def token_losses(self, packed: Packed) -> torch.Tensor:
        if packed.num_tokens > self.most_tokens:
            raise MemoryError("CUDA out of memory")
        return torch.ones(len(packed.targets))


def held_out_is_bound() -> bool:
    """Held-out rows are computed under the plan's token budget, and in smaller parts where even that is too much."""
    limits = Limits.of(planned().execution_values())
    rows = [Row(tuple(range(100)), (True,) * 100)] * 4
    held_out = RunningExecution(
        limits=limits,
        apply=lambda limits: Tight(150),
        num_layers=1,
        usable=(),
        backward=lambda loss: None,
        drop_gradients=lambda: None,
        memory=DeviceMemory(device=torch.device("cpu")),
        write=lambda kind, **fields: None,
        step_in_hand=lambda: 1,
    ).evaluate(rows)
    return limits.token_budget > 150 and held_out.loss == 1.0 and len(held_out.row_losses) == 4


def longest_counts() -> bool:
    """The longest row is in the estimate before the first step: a length that cannot fit is refused up front."""
    with pytest.raises(UserError, match="needs 18"):
        resolve(card_report(8), asking(max_length=40_000), known("Qwen/Qwen3-8B"), data_of(longest=40_000))
    long, short = (
        resolve(card_report(24), asking(method="qlora-4"), known("Qwen/Qwen3-8B"), data_of(longest=length))
        for length in (12_000, 1_000)
    )
    return long.memory.fits and long.execution["token_budget"].value >= short.execution["token_budget"].value


def recipe_is_kept() -> bool:
    plans = [planned(card_report(size)) for size in (8, 12, 24, 80)]
    return len({plan.recipe["examples_per_step"].value for plan in plans}) == 1


def dtype() -> bool:
    t4 = planned(load_machine("linux-16gb-t4"))
    return (
        t4.execution["compute_dtype"].value == "float16"
        and verdict(context(machine("linux-16gb-t4")), "bf16") == "note"
    )


def stop_token() -> bool:
    from qlora_run.terminal.plan_view import print_plan

    plan = resolve(card_report(12), asking(), known("Qwen/Qwen3-4B"), data_of(stop_token=""))
    return "NO stop token" in _shown(plan, print_plan)


def _shown(plan: RunPlan, show: Callable[..., None]) -> str:
    import io

    from qlora_run.terminal.console import make_console

    paper = io.StringIO()
    show(plan, make_console(paper), False)
    return " ".join(paper.getvalue().split())


def digest_tells_recipes_apart() -> bool:
    base = planned()
    other, elsewhere = planned(learning_rate=0.5), planned(card_report(80), workers=0)
    return base.recipe_digest() != other.recipe_digest() and elsewhere.recipe_digest() != other.recipe_digest()


def one_normalisation() -> bool:
    """Accumulation is no setting here, so no loss can depend on it: micro-batches are cut from whole steps."""
    return "gradient_accumulation_steps" not in settings()


def full_disk_for_a_merge() -> bool:
    small = machine(disk={"output_free_bytes": 6 * GIB})
    return refuses("not enough disk", small, merge="yes") and verdict(context(small), "output-disk") == "note"


TABLE: list[tuple[str, str, tuple[str, ...], Callable[[], bool]]] = [
    ("VRAM spills to RAM in silence on Windows and WSL", "check", ("spill",), spill),
    ("... and a cap makes it an error that can be handled", "plan", ("vram_budget_bytes",), capped),
    (
        "a CPU build of torch beside a card",
        "check",
        ("torch",),
        lambda: verdict(context(machine("windows-cpu-torch")), "torch") == "fail",
    ),
    (
        "a torch without code for the card",
        "check",
        ("architecture", "known-bad"),
        lambda: (
            verdict(context(with_card(capability=(13, 0))), "architecture") == "fail"
            and verdict(context(with_card(capability=(7, 0))), "known-bad") == "fail"
        ),
    ),
    (
        "data loader workers that hang",
        "check",
        ("workers",),
        lambda: verdict(context(machine(), broke("workers", "no end", "hung")), "workers") == "warn",
    ),
    (
        "... are not started where they are spawned",
        "plan",
        ("workers", "dataset_workers"),
        lambda: [planned(machine("windows-12gb")).execution[n].value for n in ("workers", "dataset_workers")] == [0, 0],
    ),
    (
        "Triton that imports and does not run",
        "check",
        ("triton",),
        lambda: verdict(context(machine(), broke("triton")), "triton") == "warn",
    ),
    (
        "bitsandbytes that imports and does not run",
        "check",
        ("4-bit", "8-bit", "8-bit-optimizer"),
        lambda: (
            verdict(context(machine(), broke("nf4")), "4-bit") == "fail"
            and verdict(context(machine(), broke("int8")), "8-bit") == "warn"
            and verdict(context(machine(), broke("adam8bit")), "8-bit-optimizer") == "warn"
        ),
    ),
    (
        "a paged optimizer on Windows",
        "plan",
        ("optimizer_kernel",),
        lambda: (
            planned(machine("windows-12gb")).execution["optimizer_kernel"].value == "fused"
            and "paged optimizer on Windows"
            in " ".join(planned(machine("windows-12gb"), optimizer_kernel="paged").notes)
        ),
    ),
    ("out of memory late, on a long sample", "plan", ("token_budget", "memory"), longest_counts),
    ("an automatic batch that changes the recipe", "plan", ("examples_per_step",), recipe_is_kept),
    ("out of memory while evaluating", "plan", ("token_budget",), held_out_is_bound),
    ("bfloat16 that is emulated", "check", ("bf16",), dtype),
    ("... and what computes instead", "plan", ("compute_dtype",), dtype),
    ("endless generation: no stop token is learned", "plan", ("data facts",), stop_token),
    ("a merge without room", "check", ("output-disk",), full_disk_for_a_merge),
    ("... is refused before training", "plan", ("disk", "merge"), full_disk_for_a_merge),
    (
        "a merge killed for memory",
        "check",
        ("wsl-memory",),
        lambda: verdict(context(machine("wsl-16gb", memory={"ram_total_bytes": 12 * GIB})), "wsl-memory") == "note",
    ),
    (
        "a download that fills the disk",
        "check",
        ("cache-disk",),
        lambda: (
            verdict(context(machine(disk={"cache_free_bytes": 9 * GIB}), model="Qwen/Qwen3-8B"), "cache-disk") == "fail"
        ),
    ),
    (
        "RAM that does not hold the loading",
        "check",
        ("ram", "container-memory"),
        lambda: verdict(context(machine(memory={"ram_available_bytes": 2 * GIB})), "ram") == "warn",
    ),
    (
        "Windows error 1455",
        "check",
        ("page-file",),
        lambda: "1455" in found(context(machine("windows-12gb"), commit_free_bytes=4 * GIB))["page-file"].consequence,
    ),
    (
        "WSL takes half the RAM",
        "check",
        ("wsl-memory",),
        lambda: verdict(context(machine("wsl-16gb", memory={"ram_total_bytes": 6 * GIB})), "wsl-memory") == "warn",
    ),
    ("a resume that goes on with another recipe", "plan", ("recipe digest",), digest_tells_recipes_apart),
    ("a loss that depends on accumulation", "plan", ("examples_per_step",), one_normalisation),
    (
        "symlinks on Windows (WinError 1314)",
        "check",
        ("symlinks",),
        lambda: verdict(context(machine("windows-12gb"), symlink_problem="WinError 1314"), "symlinks") == "note",
    ),
    (
        "a console in GBK",
        "check",
        ("console", "encoding"),
        lambda: verdict(context(machine(platform={"console_encoding": "gbk"})), "console") == "note",
    ),
    (
        "data read in the locale's encoding",
        "plan",
        ("encoding",),
        lambda: planned().recipe["encoding"].value == "utf-8",
    ),
    (
        "expandable segments on Windows and WSL",
        "plan",
        ("expandable_segments",),
        lambda: (
            refuses("not available", card_report(12, system="windows"), expandable_segments="yes")
            and refuses(
                "not available", card_report(12, platform=Platform(system="linux", wsl=True)), expandable_segments="yes"
            )
        ),
    ),
    (
        "several cards that do not reach each other",
        "check",
        ("all-reduce",),
        lambda: verdict(context(machine("linux-2x24gb"), broke("all_reduce")), "all-reduce") == "warn",
    ),
]


@pytest.mark.parametrize(("kind", "catchers", "caught"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_it_is_caught(kind: str, catchers: tuple[str, ...], caught: Callable[[], bool]) -> None:
    assert set(catchers) <= (CHECK_IDS if kind == "check" else PLAN_RULES)
    assert caught()
