"""Main memory: what is free, what a container or WSL leaves of it, and what Windows would promise."""

import math

from qlora_profiles.units import GIB, gib
from qlora_run.doctor import remedies
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.findings import Finding, note, ok, skipped, warn
from qlora_run.doctor.needs import needs_of


def ram(s: CheckContext) -> Finding:
    """Free main memory against loading the model, or against training on the CPU."""
    available, total = s.report.memory.ram_available_bytes, s.report.memory.ram_total_bytes
    if available is None:
        return skipped("the operating system does not tell")
    seen = f"{gib(available)}{f' of {gib(total)}' if total else ''} GiB RAM free"
    if s.plan is None:
        return ok(seen)
    needed = needs_of(s.plan).load_bytes
    on_card = s.plan.execution_values().device != "cpu"
    if on_card and available < needed:
        fix = remedies.place("close programs, or --model with fewer parameters")
        consequence = "loading swaps, or is killed by the system"
        return warn(f"{seen}; loading {s.plan.model.name} needs {gib(needed)}", consequence, fix)
    return ok(seen)


def container_memory(s: CheckContext) -> Finding:
    """A control group's limit, at which the kernel kills without a word."""
    limit = s.report.memory.cgroup_limit_bytes
    if limit is None:
        return skipped("no container's limit")
    seen = f"this container may use {gib(limit)} GiB"
    if s.plan is None:
        return ok(seen)
    needed = needs_of(s.plan).load_bytes
    if limit < needed:
        amount = math.ceil(needed / GIB)
        fix = remedies.command(
            f"docker run --memory {amount}g ...", say=f"a larger limit: docker run --memory {amount}g"
        )
        return warn(
            f"{seen}; loading {s.plan.model.name} needs {gib(needed)}", "the kernel kills it while loading", fix
        )
    return ok(seen)


def wsl_memory(s: CheckContext) -> Finding:
    """WSL's share: half of the machine unless ``.wslconfig`` says otherwise."""
    total = s.report.memory.ram_total_bytes
    if not s.wsl or total is None:
        return skipped("for WSL only")
    seen = f"WSL has {gib(total)} GiB: half of the machine's, unless .wslconfig says otherwise"
    needs = needs_of(s.plan) if s.plan else None
    if needs is None or total >= needs.merge_bytes:
        return ok(seen)
    fix = remedies.wsl_memory(math.ceil(needs.merge_bytes / GIB))
    name = s.plan.model.name if s.plan else ""
    if total < needs.load_bytes:
        return warn(f"{seen}; loading {name} needs {gib(needs.load_bytes)}", "it is killed while loading", fix)
    return note(f"{seen}; merging {name} needs {gib(needs.merge_bytes)}", "training works, --merge may be killed", fix)


def commit(s: CheckContext) -> Finding:
    """Windows promises memory before it is used, and refuses with error 1455 what the page file cannot back."""
    if not s.report.is_windows:
        return skipped("for Windows only")
    free = s.here.commit_free_bytes if s.here.looked else _by_report(s)
    if free is None:
        return skipped("Windows did not tell")
    seen = f"Windows would still promise {gib(free)} GiB"
    if s.plan is None:
        return ok(seen)
    needed = needs_of(s.plan).commit_bytes
    if free >= needed:
        return ok(f"{seen}; loading {s.plan.model.name} asks for {gib(needed)}")
    more = math.ceil((needed - free + (s.report.memory.swap_total_bytes or 0)) / GIB)
    consequence = 'loading stops: "the paging file is too small" (error 1455)'
    return warn(f"{seen}; loading {s.plan.model.name} asks for {gib(needed)}", consequence, remedies.page_file(more))


def _by_report(s: CheckContext) -> int | None:
    """Free main memory and the page file, as far as a report tells."""
    memory = s.report.memory
    return None if memory.ram_available_bytes is None else memory.ram_available_bytes + (memory.swap_total_bytes or 0)
