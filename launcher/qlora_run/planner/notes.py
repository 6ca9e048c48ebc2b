"""What a person should know of a plan beside its values."""

from collections.abc import Callable, Iterator

from qlora_profiles.hardware import Gpu
from qlora_profiles.layer_kinds import ATTENTION
from qlora_profiles.units import in_gib
from qlora_run.planner.context import PlanningContext
from qlora_run.planner.rules.machine import free_vram_bytes, has_bf16, why_no_cuda
from qlora_run.planner.search.fit import Fit

LARGE_PARAMS = 2e9
"""A model of more values takes long enough to load that a second time is worth a word. Set by hand."""


def notes_of(s: PlanningContext, fit: Fit) -> Iterator[str]:
    """The notes that apply, the most important first."""
    yield from _about_device(s)
    yield from _about_trials(s)
    yield from _about_model(s)
    yield from _unused_settings(s)
    yield from _about_settings(s)
    memory = fit.found.best.memory
    if memory.close:
        yield "close: nothing smaller is left, and only the card can tell; it is measured before the first step"
    if memory.budget_bytes is None:
        yield "how much memory is free could not be read: whether the plan fits is not known"


def _about_device(s: PlanningContext) -> Iterator[str]:
    vendors = {gpu.vendor for gpu in s.report.gpus}
    if not s.on_cuda and "nvidia" in vendors and s.value("device") == "cpu" and not s.report.cuda_gpus:
        name = next(gpu.name for gpu in s.report.gpus if gpu.vendor == "nvidia")
        yield f"PLANNED ON THE CPU although there is a {name}: {why_no_cuda(s)}; many times slower (qlora-run doctor)"
    if s.gpu is not None and len(s.report.cuda_gpus) > 1:
        yield _about_cards(s, s.gpu)


def _about_cards(s: PlanningContext, used: Gpu) -> str:
    """Which of several cards is used, and whether another has more room."""
    cards, (number, *_) = s.report.cuda_gpus, s.value("devices")
    free = [free_vram_bytes(gpu) or 0 for gpu in cards]
    roomier, more = free.index(max(free)), max(free) - (free_vram_bytes(used) or 0)
    hint = f"; card {roomier} has {in_gib(more)} more free (--devices {roomier})" if more > 2**28 else ""
    return f"{len(cards)} cards: this plan uses {f'card {number}' if number else 'the first'}{hint}"


WITHOUT = {
    "nf4": "no 4-bit base",
    "varlen": "attention sdpa instead of the packed kernel",
    "adamw": "the plain optimizer instead of the fused one",
    "graphs": "no CUDA graphs",
    "triton": "no kernels that need Triton",
    "dequantize": "bitsandbytes' kernels for 4-bit weights",
    "cross_entropy": "torch's own words for the loss",
    "liger": "no kernels of Liger's",
    "unsloth": "no Unsloth",
    "workers": "no loader processes",
}
"""What a plan does without, by the self-test that failed; what concerns the card alone is left out on a CPU."""
ON_ANY_DEVICE = ("nf4", "adamw")


def _about_trials(s: PlanningContext) -> Iterator[str]:
    card, failed = s.given_card, s.selftest_results.card_problem()
    if card and failed and s.value("device") == "cpu":
        yield f"PLANNED ON THE CPU although there is a {card.name}: {failed}; many times slower (qlora-run doctor)"
    for test, without in WITHOUT.items():
        problem = s.selftest_results.problem(test)
        if problem and (s.on_cuda or test in ON_ANY_DEVICE):
            yield f"{without}: it was tried here and failed: {problem} (qlora-run doctor)"


def _about_model(s: PlanningContext) -> Iterator[str]:
    model = s.model
    if not model.exact and model.quantised is None:
        yield f"{model.name}: shape from a list of known models; the weights' own headers are read before training"
    if model.layer_linear_params > 1.05 * model.linear_params:
        rough = "" if model.experts_per_token else "; the estimate is rough"
        yield f"mixture of experts: the experts get no adapter and are not quantised{rough}"
    without = [group for group in model.layers if group.kind not in ATTENTION]
    if without:
        kinds = ", ".join(dict.fromkeys(group.kind for group in without))
        count = sum(group.count for group in without)
        yield f"{count} of {model.num_layers} layers have no attention ({kinds}): what they keep and take is rough"
    if not s.data.exact:
        yield "not all rows were counted: the longest example is taken to be as long as max_length allows"


def _about_settings(s: PlanningContext) -> Iterator[str]:
    if s.value("read_back") and s.model.params > LARGE_PARAMS:
        yield "at the end the model is loaded once more, to compare what was saved (--read-back false leaves it out)"
    if s.value("optimizer_kernel") == "paged" and s.report.is_windows:
        yield "paged optimizer on Windows: kept as you asked, though it is not known to work there"
    if s.value("optimizer_kernel") == "paged" and not s.on_cuda:
        yield "paged optimizer: does nothing without a CUDA card"
    if s.value("method") == "full" and s.resolved["learning_rate"].source == "default":
        yield "full training with the learning rate of an adapter (2e-4): 1e-5 to 2e-5 is usual"
    if s.value("method") == "full" and s.value("keep") == "best":
        yield "full training keeps the weights of the last step: the best step's are kept of adapters alone"
    budget = s.value("vram_budget_bytes")
    free = free_vram_bytes(s.gpu) if s.gpu else None
    if free is not None and budget is not None and budget > free:
        yield f"the VRAM budget ({in_gib(budget)}) is more than is free now ({in_gib(free)})"
    if s.on_cuda and s.value("compute_dtype") == "float32" and has_bf16(s.gpu):
        yield "float32 arithmetic: about four times slower than bfloat16 on this card"


ADAPTER_SETTINGS = ("lora_r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")
UNUSED: tuple[tuple[tuple[str, ...], Callable[[PlanningContext], bool], str], ...] = (
    (ADAPTER_SETTINGS, lambda s: bool(s.value("method") == "full"), "full training has no adapter"),
    (("quant_type", "double_quant"), lambda s: bool(s.value("method") != "qlora-4"), "only a 4-bit base uses it"),
    (
        ("warmup_ratio", "warmup_steps"),
        lambda s: bool(s.value("lr_scheduler") == "constant"),
        "a constant rate does not warm up (--lr-scheduler constant_with_warmup does)",
    ),
    (("warmup_ratio",), lambda s: s.value("warmup_steps") is not None, "warmup_steps is given too, and decides"),
    (("epochs",), lambda s: s.value("max_steps") is not None, "max_steps is given too, and decides"),
    (("keep",), lambda s: s.value("val_size") == 0, "no row is held out to tell which step is best"),
)
"""(settings of a recipe, when they change nothing, why): somebody who gave one is told."""


def _unused_settings(s: PlanningContext) -> Iterator[str]:
    for names, unused, why in UNUSED:
        given = [name for name in names if name in s.given and s.resolved[name].source != "default"]
        if given and unused(s):
            yield f"NOT USED: {', '.join(given)}: {why}"
