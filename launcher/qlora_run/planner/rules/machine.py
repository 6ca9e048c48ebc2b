"""One small function for each setting that follows from the machine alone."""

from typing import Any

from qlora_core.backends.unsloth import requirements
from qlora_profiles.errors import EnvironmentProblem, QloraRunError, UserError
from qlora_profiles.hardware import Gpu, HardwareReport
from qlora_profiles.plan import Resolved
from qlora_profiles.settings import FIRST_CARD
from qlora_profiles.units import GIB, in_gib
from qlora_run.planner.context import PlanningContext

BF16_CAPABILITY = (8, 0)
"""Ampere: NVIDIA's first with bfloat16 in hardware (CUDA C++ Programming Guide, compute capabilities)."""

RESERVE_BYTES = int(0.1 * GIB)
DISPLAY_RESERVE_BYTES = int(0.3 * GIB)
WINDOWS_RESERVE_BYTES = int(0.2 * GIB)
"""Kept free on a card, set by hand: always, where it also draws the desktop, and where Windows manages its memory."""
RAM_RESERVE_BYTES = GIB
"""Kept free of main memory for all else that runs: set by hand."""


def device(s: PlanningContext) -> Resolved:
    """CUDA with a CUDA build of torch and an NVIDIA card, else the CPU."""
    card = s.given_card or next(iter(s.report.cuda_gpus), None)
    if card and (failed_here := s.selftest_results.card_problem()):
        return Resolved("cpu", "probe", f"computing on the card failed here: {failed_here}")
    if card:
        return Resolved("cuda", "probe", f"{card.name} with a CUDA build of torch")
    return Resolved("cpu", "probe", why_no_cuda(s))


def why_no_cuda(s: PlanningContext) -> str:
    """Why CUDA is not used, in a few words."""
    vendors = {gpu.vendor for gpu in s.report.gpus}
    if "nvidia" in vendors:
        version = s.report.torch.version
        return f"torch {version} is not a CUDA build" if version else "torch is not installed"
    others = {"amd": "AMD cards", "intel": "Intel cards", "apple": "Apple's GPU"}
    named = [words for vendor, words in others.items() if vendor in vendors]
    return f"no NVIDIA card; {named[0]} are not planned for yet" if named else "no NVIDIA card found"


def device_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """A device that this torch or this machine does not have."""
    if value == "cuda" and not s.report.cuda_gpus:
        return EnvironmentProblem(f"device cuda: {why_no_cuda(s)}", "qlora-run doctor, or --device cpu")
    if value in ("mps", "xpu") and s.report.torch.build != value:
        return EnvironmentProblem(f"device {value}: this torch is not built for it", "--device auto")
    return None


def devices(s: PlanningContext) -> Resolved:
    """The first card, where one computes."""
    if not s.on_cuda:
        return Resolved((), "default", "no card computes")
    return Resolved(FIRST_CARD, "default", "the first card" if len(s.report.cuda_gpus) > 1 else "the only card")


def devices_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """No card computes, it is not there, or there are several: one trains for now."""
    said, known = f"devices {','.join(map(str, value)) or 'none'}", range(len(s.report.cuda_gpus))
    if not s.on_cuda:
        return UserError(f"{said}: the {s.value('device')} computes, no card", "--device cuda") if value else None
    if missing := [number for number in value if number not in known]:
        here = f"0 to {known[-1]}" if len(known) > 1 else "0"
        return UserError(f"{said}: there is no card {missing[0]}; CUDA numbers them {here}", "--devices 0")
    if len(value) != 1:
        return UserError(f"{said}: one card trains for now", f"--devices {value[0] if value else 0}")
    return None


def backend(s: PlanningContext) -> Resolved:
    """Plain PEFT until another is measured faster; says what keeps an installed Unsloth away, or how to ask for it."""
    if s.report.version_of("unsloth") is None or "unsloth" not in s.backends:
        return Resolved("peft", "probe", "runs wherever torch runs")
    missing = s.backends["unsloth"] or _failed_here(s) or _unfit(s)
    if missing is not None:
        return Resolved("peft", "probe", f"unsloth: {missing}")
    return Resolved("peft", "probe", "unsloth could run too, but is not measured faster yet: --backend unsloth")


def backend_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """A backend that is not installed, cannot run here, or is not for this model or recipe."""
    if value not in s.backends:
        return UserError(f"backend {value}: not installed; there is {', '.join(s.backends)}", "--backend auto")
    of_unsloth = value == "unsloth"
    if reason := s.backends[value] or (_failed_here(s) if of_unsloth else None):
        return EnvironmentProblem(f"backend {value}: {reason}", "--backend auto, or qlora-run doctor")
    if of_unsloth and (reason := _unfit(s)):
        return UserError(f"backend unsloth: {reason}", "--backend auto")
    return None


def _failed_here(s: PlanningContext) -> str | None:
    """What Unsloth died of when it was tried on this machine."""
    failed_here = s.selftest_results.problem("unsloth")
    return f"it failed here: {failed_here}" if failed_here else None


def _unfit(s: PlanningContext) -> str | None:
    """Why Unsloth is not for this model or for what is known of the recipe by now."""
    known = {name: given.value for name, given in s.given.items()}
    known |= {name: resolved.value for name, resolved in s.resolved.items()}
    return requirements.unfit(s.model.model_type, known, known["target_modules"])


def compute_dtype(s: PlanningContext) -> Resolved:
    """bfloat16 where the card has it in hardware, float16 on older ones, float32 on CPU."""
    if not s.on_cuda:
        return Resolved("float32", "probe", "the CPU computes it fastest and exactly")
    if has_bf16(s.gpu):
        return Resolved("bfloat16", "probe", f"the card has it ({_capability(s.gpu)})")
    return Resolved("float16", "probe", f"cards before 8.0 only emulate bfloat16 ({_capability(s.gpu)})")


def compute_dtype_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """A format that the device computes too slowly to be meant, or not at all."""
    if value == "bfloat16" and s.on_cuda and not has_bf16(s.gpu):
        return UserError(f"compute_dtype bfloat16: the card has none ({_capability(s.gpu)})", "--compute-dtype float16")
    if value == "float16" and s.value("device") == "cpu":
        return UserError("compute_dtype float16: a CPU trains in float32 or bfloat16", "--compute-dtype float32")
    return None


def has_bf16(gpu: Gpu | None) -> bool:
    """Whether a card computes bfloat16 in hardware."""
    return gpu is not None and (gpu.capability or (0, 0)) >= BF16_CAPABILITY


def _capability(gpu: Gpu | None) -> str:
    if gpu is None or gpu.capability is None:
        return "capability unknown"
    return f"capability {gpu.capability[0]}.{gpu.capability[1]}"


def vram_budget_bytes(s: PlanningContext) -> Resolved:
    """What is free on the card now, less a reserve for whatever else draws on it."""
    if s.gpu is None:
        return Resolved(None, "probe", "no card; main memory is the limit")
    free, reserve = free_vram_bytes(s.gpu), vram_reserve_bytes(s.report, s.gpu)
    if free is None:
        return Resolved(None, "probe", "the card's memory could not be read")
    left: int | None = s.value("leave_free_bytes")
    if left is not None:
        return Resolved(max(1, free - left), "probe", f"{in_gib(free)} free, {in_gib(left)} left free as asked")
    kept = "the desktop and others" if reserve > RESERVE_BYTES else "others"
    return Resolved(max(1, free - reserve), "probe", f"{in_gib(free)} free, {in_gib(reserve)} kept for {kept}")


def vram_budget_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """More than the card has, or the same said twice."""
    if value is not None and s.value("leave_free_bytes") is not None:
        return UserError("both vram_budget_bytes and leave_free_bytes are given", "only one of --vram and --leave-free")
    total = s.gpu.vram_total_bytes if s.gpu else None
    if total is not None and value is not None and value > total:
        return UserError(
            f"vram_budget_bytes: {in_gib(value)} of a card with {in_gib(total)}", "--vram-budget-bytes auto"
        )
    return None


def free_vram_bytes(gpu: Gpu) -> int | None:
    """Free memory of a card; nine tenths of all where only the total is known."""
    if gpu.vram_free_bytes is not None:
        return gpu.vram_free_bytes
    return None if gpu.vram_total_bytes is None else int(0.9 * gpu.vram_total_bytes)


def vram_reserve_bytes(report: HardwareReport, gpu: Gpu) -> int:
    """Memory of the card that the run leaves alone."""
    managed = report.is_windows or report.platform.wsl
    draws = gpu.drives_display or (gpu.drives_display is None and managed)
    return RESERVE_BYTES + (DISPLAY_RESERVE_BYTES if draws else 0) + (WINDOWS_RESERVE_BYTES if managed else 0)


def ram_budget_bytes(s: PlanningContext) -> int | None:
    """Main memory that a run on the CPU may take."""
    free = s.report.memory.ram_available_bytes
    return None if free is None else max(1, min(free - RAM_RESERVE_BYTES, int(0.9 * free)))


def offload_bytes(report: HardwareReport) -> int | None:
    """Page-locked main memory that activations may take: half of what is free, and none but on Linux itself."""
    free = report.memory.ram_available_bytes
    on_linux = report.platform.system == "linux" and not report.platform.wsl
    return free // 2 if free is not None and on_linux else None


def workers(s: PlanningContext) -> Resolved:
    """Data loader processes; the rows are tokenised beforehand, so they have little to do."""
    if not s.on_cuda:
        return Resolved(0, "probe", "rows are tokenised beforehand; the CPU is busy computing")
    if s.report.platform.system != "linux":
        return Resolved(0, "probe", "starting processes here costs more than they do: rows are tokenised beforehand")
    if failed_here := s.selftest_results.problem("workers"):
        return Resolved(0, "probe", f"a loader process failed here: {failed_here}")
    return Resolved(_spare_cores(s), "probe", "they hardly matter: rows are tokenised beforehand")


def dataset_workers(s: PlanningContext) -> Resolved:
    """Processes that tokenise; worth their start for many rows only, and not on Windows."""
    if s.report.platform.system != "linux":
        return Resolved(0, "probe", "in this process: new ones start slowly on this system")
    if s.data.rows < 20_000:
        return Resolved(0, "probe", f"{s.data.rows:,} rows are tokenised in seconds")
    return Resolved(_spare_cores(s), "probe", f"{s.data.rows:,} rows, {s.report.cpu_cores_logical or 'unknown'} cores")


def _spare_cores(s: PlanningContext) -> int:
    cores = s.report.cpu_cores_logical or s.report.cpu_cores_physical or 1
    return max(0, min(4, cores - 1))


def pin_memory(s: PlanningContext) -> Resolved:
    """Page-locked copies on CUDA under Linux."""
    if s.on_cuda and s.on_linux:
        return Resolved(True, "probe", "copies to the card overlap with computing")
    reason = "page-locked memory is scarce on this system" if s.on_cuda else "nothing is copied to a card"
    return Resolved(False, "probe", reason)


def expandable_segments(s: PlanningContext) -> Resolved:
    """The growing allocator, where the driver offers it."""
    if s.on_cuda and s.on_linux:
        return Resolved(True, "probe", "less memory lost between blocks of different sizes")
    return Resolved(False, "probe", "not available on Windows and WSL" if s.on_cuda else "for CUDA only")


def expandable_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """Given where the driver does not have it."""
    if value and s.on_cuda and not s.on_linux:
        return UserError("expandable_segments: not available on Windows and WSL", "--expandable-segments no")
    return None


def torch_at_least(s: PlanningContext, major: int, minor: int) -> bool:
    """Whether the installed torch is this new."""
    version = s.report.torch_version
    return version is not None and version >= (major, minor)
