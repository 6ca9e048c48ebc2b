"""The cards: which, how old, how full, who else is on them, and who manages their memory."""

from qlora_profiles.hardware import Gpu, GpuProcess
from qlora_profiles.units import GIB, gib
from qlora_profiles.versions import version_numbers
from qlora_run.doctor import remedies
from qlora_run.doctor.check_context import CheckContext, is_full
from qlora_run.doctor.cuda_architectures import has_code_for
from qlora_run.doctor.diagnosis import Fix
from qlora_run.doctor.findings import Finding, fail, note, ok, skipped, warn
from qlora_run.planner.rules.machine import BF16_CAPABILITY, free_vram_bytes

OLDEST_CAPABILITY = (7, 0)
"""Below it bitsandbytes' 4-bit kernels and torch's prebuilt CUDA code do not run."""
SMALL_VRAM_BYTES = 5 * GIB
"""A card below this is worth a warning; set by hand."""
HOLDER_BYTES = GIB // 2
"""A process that holds less is not named; set by hand."""
TAKEN_SHARE = 0.5
"""Less than this share of a card free is worth a warning, whoever holds it; set by hand."""
WHO = remedies.command("nvidia-smi", say="nvidia-smi shows who; close it")
"""Where the number of the process that holds a card is not known."""
SPILLING_DRIVER = (536, 40)
"""From here on Windows' driver moves memory to RAM instead of refusing it."""


def gpu(s: CheckContext) -> list[Finding]:
    """Which cards there are, and whether 4-bit training runs on them."""
    if s.nvidia:
        return [_card(s, card) for card in s.nvidia]
    demo = remedies.command("qlora-run demo", say="qlora-run demo works here")
    if "gpus" in s.report.unknown:
        seen = f"no NVIDIA GPU answers: {s.report.unknown['gpus']}"
        return [warn(seen, "training runs on the CPU, many times slower", remedies.driver(s.report))]
    if s.others:
        return [_other(s, card) for card in s.others]
    return [warn("no GPU", "everything runs on the CPU, slowly", demo)]


def _card(s: CheckContext, card: Gpu) -> Finding:
    capability = card.capability or (0, 0)
    small = remedies.place("--model Qwen/Qwen3-0.6B")
    if card.capability and capability < OLDEST_CAPABILITY:
        seen = f"{card.name}: compute capability {capability[0]}.{capability[1]} is too old (needs 7.0)"
        return fail(seen, "4-bit kernels do not run on it; the CPU can do the demo", _hide_card(s))
    seen = f"{card.name}, {_free(card)}"
    if card.vram_total_bytes and card.vram_total_bytes < SMALL_VRAM_BYTES:
        return warn(f"{seen}: little memory", "models up to about 1.7B at short lengths", small)
    return ok(seen, f"capability {capability[0]}.{capability[1]}, driver {card.driver}")


def _hide_card(s: CheckContext) -> Fix:
    windows = remedies.command("set CUDA_VISIBLE_DEVICES=-1", "qlora-run demo", say="set CUDA_VISIBLE_DEVICES=-1")
    linux = remedies.command("CUDA_VISIBLE_DEVICES=-1 qlora-run demo")
    return remedies.by_system(s.report, windows=windows, linux=linux)


def _free(card: Gpu) -> str:
    free = gib(card.vram_free_bytes) if card.vram_free_bytes is not None else "?"
    total = gib(card.vram_total_bytes) if card.vram_total_bytes is not None else "?"
    return f"{free} of {total} GiB free"


def _other(s: CheckContext, card: Gpu) -> Finding:
    """A card of another maker: what was really tried on it is said, and that the planner does not use it yet."""
    consequence = "training here is planned for NVIDIA cards and the CPU: it runs on the CPU"
    demo = remedies.command("qlora-run demo", say="qlora-run demo works here, on the CPU")
    return warn(f"{card.name} ({card.vendor}): {_tried_on(s)}", consequence, demo)


def _tried_on(s: CheckContext) -> str:
    device, product = s.found("torch", "device"), s.tried("device")
    if s.tried("torch").state != "ok":
        return "no NVIDIA GPU; not tried"
    if device == "cpu":
        return "the installed torch does not use it"
    if product.state != "ok":
        return f"a product on it failed: {product.said}"
    four = s.tried("nf4")
    bits = "a 4-bit product too" if four.state == "ok" else f"a 4-bit product did not: {four.said}"
    return f"a product in {product.found.get('dtype')} ran on it, {bits}"


def visible(s: CheckContext) -> Finding:
    """``CUDA_VISIBLE_DEVICES`` that hides a card, or numbers them in doubt."""
    listed, doubt = s.report.cuda_visible_devices, s.report.unknown.get("gpus.index")
    if listed is not None and not s.nvidia:
        seen = f"CUDA_VISIBLE_DEVICES={listed} hides every card"
        windows, linux = (
            remedies.command(line) for line in ("set CUDA_VISIBLE_DEVICES=", "unset CUDA_VISIBLE_DEVICES")
        )
        fix = remedies.by_system(s.report, windows=windows, linux=linux)
        return note(seen, "training runs on the CPU", fix)
    if doubt:
        return note(doubt, "another card than the one shown may be used", _bus_order(s))
    if not s.nvidia:
        return skipped("no NVIDIA card")
    return ok("all cards" if listed is None else f"CUDA_VISIBLE_DEVICES={listed}")


def _bus_order(s: CheckContext) -> Fix:
    return remedies.environment_variable(s.report, "CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def architecture(s: CheckContext) -> Finding:
    """Whether torch has code for the cards, by its own list."""
    capabilities, listed = s.found("torch", "capabilities"), s.found("torch", "architectures")
    if not capabilities or not listed or s.report.torch.build != "cuda":
        return skipped(_why_untried(s))
    without = [(c[0], c[1]) for c in capabilities if not has_code_for((c[0], c[1]), listed)]
    if not without:
        return ok(f"torch has code for {_sm(capabilities[0])}", " ".join(listed))
    backend = "cu126" if without[0] < (7, 5) else "auto"
    seen = f"torch {s.report.torch.version} has no code for this card ({_sm(without[0])})"
    consequence = 'every operation on the card fails with "no kernel image"'
    return fail(seen, consequence, remedies.torch_build(backend), " ".join(listed))


def _why_untried(s: CheckContext) -> str:
    trial = s.tried("torch")
    return trial.said if trial.state == "skipped" else "no NVIDIA card that torch sees"


def _sm(capability: tuple[int, int] | list[int]) -> str:
    return f"sm_{capability[0]}{capability[1]}"


def bf16(s: CheckContext) -> Finding:
    """bfloat16 in hardware; torch says yes to an emulated one as well, unless it is asked twice."""
    if not s.nvidia:
        return skipped("no NVIDIA card")
    tried, capability = s.found("torch", "bf16"), s.nvidia[0].capability
    real = tried if tried is not None else capability is not None and capability >= BF16_CAPABILITY
    by = "torch asked without emulation" if tried is not None else f"capability {capability}"
    if real:
        return ok("bfloat16 in hardware", by)
    return note("no bfloat16 in hardware", "arithmetic in float16 with scaled gradients, adapters in float32", None, by)


def vram(s: CheckContext) -> list[Finding]:
    """What is free on the cards, and who holds the rest."""
    if not s.nvidia:
        return [skipped("no NVIDIA card")]
    held = [(card, p) for card in s.nvidia for p in card.processes if (p.vram_bytes or 0) >= HOLDER_BYTES]
    if held:
        return [_holder(s, card, process) for card, process in held]
    return [_taken(s, card) for card in s.nvidia if _mostly_taken(card)] or [ok(", ".join(map(_free, s.nvidia)))]


def _holder(s: CheckContext, card: Gpu, process: GpuProcess) -> Finding:
    who, fix = f"{process.name or 'a process'} (pid {process.pid})", _close(s, process.pid)
    if s.report.platform.container:  # NVML may give the host's numbers: another process has this one here
        who, fix = "a process", WHO
    return _lack(s, card, f"{who} holds {gib(process.vram_bytes or 0)} GiB of VRAM", fix)


def _close(s: CheckContext, pid: int) -> Fix:
    return remedies.place(f"close it, or: {'taskkill /PID' if s.report.is_windows else 'kill'} {pid}")


def _lack(s: CheckContext, card: Gpu, seen: str, fix: Fix) -> Finding:
    """What a lack of free memory means: less of everything, or nothing at all."""
    if s.plan is None and is_full(card):
        return fail(seen, f"no model fits: {_free(card)}", fix)
    return warn(seen, "shorter texts, smaller micro-batches: only what is free is planned with", fix)


def _mostly_taken(card: Gpu) -> bool:
    free, total = card.vram_free_bytes, card.vram_total_bytes
    return free is not None and total is not None and free < TAKEN_SHARE * total


def _taken(s: CheckContext, card: Gpu) -> Finding:
    return _lack(s, card, f"{card.name}: only {_free(card)}", WHO)


def display(s: CheckContext) -> Finding:
    """A card that draws the desktop shares its memory with it."""
    if not s.nvidia:
        return skipped("no NVIDIA card")
    drawing = [card for card in s.nvidia if card.drives_display]
    if not drawing:
        return ok("draws no desktop" if s.nvidia[0].drives_display is False else "not known to draw a desktop")
    free = free_vram_bytes(drawing[0])
    return note(
        f"the {drawing[0].name} also draws the desktop",
        "0.3 GiB more are left to it" + (f" of {gib(free)}" if free else ""),
        remedies.place("plug the monitor into the mainboard, or close windows before long runs"),
    )


def driver_model(s: CheckContext) -> Finding:
    """Who schedules the card on Windows: WDDM shares it with the desktop, TCC and MCDM do not."""
    if not s.report.is_windows or not s.nvidia:
        return skipped("for NVIDIA cards on Windows only")
    model = s.nvidia[0].driver_model
    if model in ("tcc", "mcdm"):
        return ok(f"{model.upper()}: the card is ours alone")
    return ok("WDDM: the card is shared with Windows" if model else "WDDM, most likely: shared with Windows")


def spill(s: CheckContext) -> Finding:
    """Windows' driver moves memory that no longer fits to RAM, without an error and many times slower."""
    if not s.windows_memory:
        return skipped("Windows manages no card's memory here")
    version = s.nvidia[0].driver
    if version and version_numbers(version)[:2] < SPILLING_DRIVER and not s.wsl:
        return ok(f"driver {version} refuses what does not fit")
    budget = s.plan.memory.budget_bytes if s.plan else None
    capped = f"runs are capped at {gib(budget)} GiB, below it" if budget else "runs are capped below it"
    panel = "NVIDIA Control Panel, Manage 3D settings, CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback"
    fix = remedies.place(panel + (" (in Windows)" if s.wsl else ""))
    return note("the driver may move VRAM to RAM in silence", capped, fix, f"driver {version}")
