"""Disks and folders: room for the download and for what a run writes, and whether they can be written at all."""

from qlora_profiles.units import GIB, gib
from qlora_run.doctor import remedies
from qlora_run.doctor.needs import needs_of
from qlora_run.doctor.seen import Seen, fail, note, ok, skipped, warn
from qlora_run.doctor.subject import Subject

SMALL_DISK_BYTES = 20 * GIB
"""Without a plan: an 8B download needs 16 GiB, and a run writes too."""


def cache_disk(s: Subject) -> Seen:
    """Room for downloading the model."""
    free = s.report.disk.cache_free_bytes
    if free is None:
        return skipped("its free space could not be read")
    seen = f"{gib(free, 0 if free > 10 * GIB else 1)} GiB free for downloads"
    elsewhere = "D:\\models" if s.report.is_windows else "/FOLDER/ON/ANOTHER/DISK"
    if s.plan is None or s.downloaded:
        return ok(seen if not s.downloaded else f"{seen}; the model is here already")
    needs = needs_of(s.plan)
    same_disk = free == s.report.disk.output_free_bytes
    needed = needs.download_bytes + (needs.written_bytes if same_disk else 0)
    what = f"{s.plan.model.name} needs {gib(needed, 1)}{' with its checkpoints' if same_disk else ''}"
    if free < needed:
        fix = remedies.command(f"qlora-run plan --cache {elsewhere}", say=f"--cache {elsewhere}")
        return fail(f"{seen}, {what}", "the download stops when the disk is full", fix)
    if free < needed + SMALL_DISK_BYTES // 4:
        fix = remedies.place(f"free some space, or --cache {elsewhere}")
        return warn(f"{seen}, {what}", "little is left for the system", fix)
    return ok(f"{seen}; {what}")


def output_disk(s: Subject) -> Seen:
    """Room for checkpoints, the adapter and a merged model."""
    free = s.report.disk.output_free_bytes
    if free is None:
        return skipped("its free space could not be read")
    seen = f"{gib(free, 0 if free > 10 * GIB else 1)} GiB free for runs"
    if s.plan is None:
        return ok(seen)
    needed, merged = needs_of(s.plan).written_bytes, 2 * s.plan.model.params
    if not s.plan.run_values().merge and free < needed + merged:
        fix = remedies.place("--output on another disk before qlora-run merge")
        return note(f"{seen}: merging {s.plan.model.name} later needs {gib(needed + merged)}", "", fix)
    return ok(f"{seen}; a run writes {gib(needed)}")


def cache_folder(s: Subject) -> Seen:
    """Whether models can be stored."""
    problem = s.here.cache_problem
    if problem is None:
        return skipped("only looked at on this machine")
    if not problem:
        return ok("can be written")
    fix = remedies.environment(s.report, "HF_HOME", "D:\\hub" if s.report.is_windows else '"$PWD/hub"')
    if s.downloaded:
        return note(f"the hub's cache cannot be written: {problem}", "nothing new can be downloaded", fix)
    return fail(f"the hub's cache cannot be written: {problem}", "no model can be downloaded", fix)


def output_folder(s: Subject) -> Seen:
    """Whether a run can be stored."""
    problem = s.here.output_problem
    if problem is None:
        return skipped("only looked at on this machine")
    if not problem:
        return ok("can be written")
    return fail(
        f"the output folder cannot be written: {problem}", "a run cannot save", remedies.place("--output FOLDER")
    )


def symlinks(s: Subject) -> Seen:
    """The hub's cache saves room with links; Windows makes none without developer mode."""
    problem = s.here.symlink_problem
    if problem is None:
        return skipped("only looked at on this machine")
    if not problem:
        return ok("can be made")
    windows = remedies.command(
        "start ms-settings:developers", say="switch developer mode on: start ms-settings:developers"
    )
    linux = remedies.place("--cache on a disk with a Linux file system")
    fix = remedies.by_system(s.report, windows=windows, linux=linux)
    return note(f"links cannot be made ({problem})", "downloads are copied instead: more disk, nothing else", fix)
