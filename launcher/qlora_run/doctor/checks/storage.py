"""Disks and folders: room for the download and for what a run writes, and whether they can be written at all."""

from qlora_profiles.units import GIB, gib
from qlora_run.doctor import remedies
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.findings import Finding, fail, note, ok, skipped, warn
from qlora_run.doctor.needs import needs_of

SPARE_BYTES = 5 * GIB
"""Less than this beside the model is worth a warning; set by hand."""
LEAST_BYTES = GIB
"""Without a plan: the smallest model that is known takes more, and a run writes nearly half of it."""
STOPS = "the download stops when the disk is full"


def cache_disk(s: CheckContext) -> Finding:
    """Room for downloading the model."""
    free = s.report.disk.cache_free_bytes
    if free is None:
        return skipped("its free space could not be read")
    seen = f"{gib(free, 0 if free > 10 * GIB else 1)} GiB free for downloads"
    elsewhere = "D:\\models" if s.report.is_windows else "/FOLDER/ON/ANOTHER/DISK"
    move = remedies.command(f"qlora-run doctor --cache {elsewhere}")
    if s.downloaded:
        return ok(f"{seen}; the model is here already")
    if s.plan is None:
        return ok(seen) if free >= LEAST_BYTES else fail(f"{seen}: no model fits", STOPS, move)
    needs = needs_of(s.plan)
    same_disk = free == s.report.disk.output_free_bytes
    needed = needs.download_bytes + (needs.written_bytes if same_disk else 0)
    what = f"{s.plan.model.name} needs {gib(needed, 1)}{' with its checkpoints' if same_disk else ''}"
    if free < needed:
        return fail(f"{seen}, {what}", STOPS, move)
    if free < needed + SPARE_BYTES:
        fix = remedies.place(f"free some space, or --cache {elsewhere}")
        return warn(f"{seen}, {what}", "little is left for the system", fix)
    return ok(f"{seen}; {what}")


def output_disk(s: CheckContext) -> Finding:
    """Room for checkpoints, the adapter and a merged model."""
    free = s.report.disk.output_free_bytes
    if free is None:
        return skipped("its free space could not be read")
    seen = f"{gib(free, 0 if free > 10 * GIB else 1)} GiB free for runs"
    if s.plan is None and free < LEAST_BYTES:
        return warn(seen, "checkpoints may not fit", remedies.place("--output on another disk"))
    if s.plan is None:
        return ok(seen)
    needed, merged = needs_of(s.plan).written_bytes, 2 * s.plan.model.params
    if not s.plan.run_values().merge and free < needed + merged:
        fix = remedies.place("--output on another disk before qlora-run merge")
        return note(f"{seen}: merging {s.plan.model.name} later needs {gib(needed + merged)}", "", fix)
    return ok(f"{seen}; a run writes {gib(needed)}")


def cache_folder(s: CheckContext) -> Finding:
    """Whether models can be stored."""
    problem = s.here.cache_problem
    if problem is None:
        return skipped("only looked at on this machine")
    if not problem:
        return ok("can be written")
    fix = remedies.environment_variable(s.report, "HF_HOME", "D:\\hub" if s.report.is_windows else '"$PWD/hub"')
    if s.downloaded:
        return note(f"the hub's cache cannot be written: {problem}", "nothing new can be downloaded", fix)
    return fail(f"the hub's cache cannot be written: {problem}", "no model can be downloaded", fix)


def output_folder(s: CheckContext) -> Finding:
    """Whether a run can be stored."""
    problem = s.here.output_problem
    if problem is None:
        return skipped("only looked at on this machine")
    if not problem:
        return ok("can be written")
    return fail(
        f"the output folder cannot be written: {problem}", "a run cannot save", remedies.place("--output FOLDER")
    )


def symlinks(s: CheckContext) -> Finding:
    """The hub's cache saves room with links; Windows makes none without developer mode."""
    problem = s.here.symlink_problem
    if problem is None:
        return skipped("the hub's cache cannot be written" if s.here.looked else "only looked at on this machine")
    if not problem:
        return ok("can be made")
    windows = remedies.command(
        "start ms-settings:developers", say="switch developer mode on: start ms-settings:developers"
    )
    linux = remedies.place("--cache on a disk with a Linux file system")
    fix = remedies.by_system(s.report, windows=windows, linux=linux)
    return note(f"links cannot be made ({problem})", "downloads are copied instead: more disk, nothing else", fix)
