"""Findings that the probe's report alone allows: no library is imported, nothing is run."""

from collections.abc import Callable

from qlora_profiles.hardware import Gpu, GpuProcess, HardwareReport
from qlora_profiles.units import GIB, gib
from qlora_run.doctor.findings import Finding

OLDEST_CAPABILITY = (7, 0)
"""Below it bitsandbytes' 4-bit kernels and torch's prebuilt CUDA code do not run."""

BF16_CAPABILITY = (8, 0)
SMALL_VRAM_BYTES = 5 * GIB
SMALL_DISK_BYTES = 20 * GIB
SMALL_RAM_BYTES = 8 * GIB
HOLDER_BYTES = GIB // 2
NEEDED = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers")
TORCH_FIX = "pip install --force-reinstall torch --index-url URL  (the CUDA line of pytorch.org's start page)"


def gpu(report: HardwareReport) -> list[Finding]:
    """Which cards there are, and whether 4-bit training runs on them."""
    cards = [g for g in report.gpus if g.vendor == "nvidia"]
    if cards:
        return [_card(card) for card in cards]
    if "gpus" in report.unknown:
        seen = f"no NVIDIA GPU answers: {report.unknown['gpus']}"
        return [Finding(id="gpu", verdict="slow", seen=seen, fix="install the NVIDIA driver, or: qlora-run demo")]
    others = ", ".join(g.name for g in report.gpus)
    seen = f"no NVIDIA GPU (found: {others})" if others else "no GPU: everything runs on the CPU, slowly"
    return [Finding(id="gpu", verdict="slow", seen=seen, fix="qlora-run demo works here")]


def _card(card: Gpu) -> Finding:
    capability = card.capability or (0, 0)
    if card.capability and capability < OLDEST_CAPABILITY:
        seen = f"{card.name}: compute capability {capability[0]}.{capability[1]} is too old (needs 7.0)"
        return Finding(id="gpu", verdict="fail", seen=seen, fix="CUDA_VISIBLE_DEVICES=-1 qlora-run demo (on the CPU)")
    kind = "bf16" if capability >= BF16_CAPABILITY else "fp16"
    seen = f"{card.name}, {_free(card)}, {kind}"
    if card.vram_total_bytes and card.vram_total_bytes < SMALL_VRAM_BYTES:
        return Finding(id="gpu", verdict="slow", seen=f"{seen}: little memory", fix="--model Qwen/Qwen3-0.6B")
    return Finding(id="gpu", verdict="ok", seen=seen)


def _free(card: Gpu) -> str:
    free = gib(card.vram_free_bytes) if card.vram_free_bytes is not None else "?"
    total = gib(card.vram_total_bytes) if card.vram_total_bytes is not None else "?"
    return f"{free} of {total} GiB free"


def torch(report: HardwareReport) -> list[Finding]:
    """Whether the installed torch can use the card."""
    build, has_card = report.torch.build, any(g.vendor == "nvidia" for g in report.gpus)
    if report.torch.version is None:
        return [Finding(id="torch", verdict="fail", seen="torch is not installed", fix="pip install torch")]
    if has_card and build != "cuda":
        seen = f"torch {report.torch.version} is a {build or 'CPU'} build: it cannot see the NVIDIA card"
        return [Finding(id="torch", verdict="fail", seen=seen, fix=TORCH_FIX)]
    cuda = f" (CUDA {report.torch.cuda})" if report.torch.cuda else f" ({build or 'unknown'} build)"
    return [Finding(id="torch", verdict="ok", seen=f"{report.torch.version}{cuda}"), *_driver(report)]


def _driver(report: HardwareReport) -> list[Finding]:
    """A driver older than torch's CUDA cannot run it, save for minor versions of the same major one."""
    if not (report.torch.cuda and report.cuda_driver):
        return []
    wanted, offered = (int(v.split(".")[0]) for v in (report.torch.cuda, report.cuda_driver))
    if offered >= wanted:
        return []
    seen = f"the driver offers CUDA {report.cuda_driver}, torch needs {report.torch.cuda}"
    return [Finding(id="driver", verdict="fail", seen=seen, fix="install a newer NVIDIA driver")]


def packages(report: HardwareReport) -> list[Finding]:
    """Whether everything that training imports is installed."""
    missing = [name for name in NEEDED if name not in report.packages]
    if not missing:
        return [Finding(id="packages", verdict="ok", seen="all installed")]
    seen, fix = f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}"
    return [Finding(id="packages", verdict="fail", seen=seen, fix=fix)]


def memory(report: HardwareReport) -> list[Finding]:
    """Main memory, and who else holds the card's."""
    holders = [p for g in report.gpus for p in g.processes if (p.vram_bytes or 0) >= HOLDER_BYTES]
    return [*_main_memory(report), *map(_holder, holders)]


def _main_memory(report: HardwareReport) -> list[Finding]:
    available = report.memory.ram_available_bytes
    if available is None:
        return []
    total = f" of {gib(report.memory.ram_total_bytes)}" if report.memory.ram_total_bytes else ""
    seen = f"{gib(available)}{total} GiB RAM free"
    if available >= SMALL_RAM_BYTES:
        return [Finding(id="memory", verdict="ok", seen=seen)]
    return [
        Finding(id="memory", verdict="slow", seen=seen, fix="close programs: loading an 8B model needs about 8 GiB")
    ]


def _holder(process: GpuProcess) -> Finding:
    seen = f"{process.name or 'a process'} (pid {process.pid}) holds {gib(process.vram_bytes or 0)} GiB of VRAM"
    return Finding(id="vram", verdict="slow", seen=seen, fix="close it to train with longer texts or faster")


def disk(report: HardwareReport) -> list[Finding]:
    """Room for a model's download and the checkpoints."""
    free = [b for b in (report.disk.output_free_bytes, report.disk.cache_free_bytes) if b is not None]
    if not free:
        return []
    if min(free) >= SMALL_DISK_BYTES:
        return [Finding(id="disk", verdict="ok", seen=f"{gib(min(free), 0)} GiB free")]
    seen = f"{gib(min(free))} GiB free; an 8B download needs 16"
    return [Finding(id="disk", verdict="slow", seen=seen, fix="--cache FOLDER-ON-ANOTHER-DISK --output FOLDER-THERE")]


CHECKS: tuple[Callable[[HardwareReport], list[Finding]], ...] = (gpu, torch, packages, memory, disk)


def findings(report: HardwareReport) -> list[Finding]:
    """Every finding of the report."""
    return [finding for check in CHECKS for finding in check(report)]
