"""Python and the operating system around it."""

from qlora_profiles.versions import version_numbers
from qlora_run.doctor import remedies
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.findings import Finding, fail, note, ok, skipped, warn

OLDEST_PYTHON = (3, 11)
WIDE_MACHINES = ("x86_64", "amd64", "arm64", "aarch64")
LONGEST_WINDOWS_PATH = 260
"""``MAX_PATH`` of Windows' interface, in letters."""
BELOW_THE_OUTPUT = 110
"""Letters of the longest path that a run makes below its output folder."""


def python(s: CheckContext) -> Finding:
    """Its version, and 64 bits: torch has no wheels for fewer."""
    version, machine = s.report.platform.python, s.report.platform.machine
    if version is None:
        return skipped("its version is not known")
    if version_numbers(version) < OLDEST_PYTHON:
        fix = remedies.command("uv venv --python 3.13", say="a new environment: uv venv --python 3.13")
        return fail(f"Python {version}", "torch and transformers need 3.11 or newer", fix)
    if s.here.bits == 32:
        fix = remedies.command("uv venv --python 3.13", say="64-bit Python: uv venv --python 3.13")
        return fail(f"Python {version} with 32 bits", "torch has 64-bit builds only", fix)
    where = "" if s.here.virtual is None else ", virtual environment" if s.here.virtual else ", no virtual environment"
    return ok(f"{version} on {machine or 'an unknown processor'}{where}")


def platform(s: CheckContext) -> Finding:
    """The operating system: where torch has builds at all."""
    here = s.report.platform
    name = f"{here.system} {here.release or ''}".strip() + (", WSL" if here.wsl else "")
    machine = (here.machine or "").lower()
    if here.system == "macos" and machine == "x86_64":
        fix = remedies.place("another machine; this one can plan: qlora-run plan --as linux-12gb")
        return fail(f"{name} on an Intel processor", "torch has no builds for it since 2.3", fix)
    if here.system == "windows" and machine == "arm64":
        fix = remedies.place("x64 Python, or another machine")
        return warn(f"{name} on Arm", "torch's builds there know no CUDA, and bitsandbytes has none", fix)
    if machine and machine not in WIDE_MACHINES:
        fix = remedies.place("a machine with an x86-64 or 64-bit Arm processor")
        return fail(f"{name} on {here.machine}", "torch has no builds for this processor", fix)
    return ok(name + (", container" if here.container else ""), here.build or "")


def console(s: CheckContext) -> Finding:
    """The console's encoding; where it lacks signs, ASCII stands in for them."""
    encoding = s.report.platform.console_encoding
    if encoding is None:
        return skipped("there is no console")
    if encoding.lower().replace("-", "").startswith("utf"):
        return ok(f"writes {encoding}")
    lines = remedies.command("chcp 65001", say="chcp 65001 (optional)")
    fix = remedies.by_system(
        s.report, windows=lines, linux=remedies.environment_variable(s.report, "PYTHONIOENCODING", "utf-8")
    )
    return note(f"the console writes {encoding}", "signs are spelled in ASCII; letters it lacks become ?", fix)


def text_encoding(s: CheckContext) -> Finding:
    """The locale: how other programs' files, and file names, are read."""
    names, text = s.here.file_encoding, s.here.text_encoding
    if names is None or text is None:
        return skipped("only looked at on this machine")
    if names.lower() == "ascii":
        fix = remedies.environment_variable(s.report, "LC_ALL", "C.UTF-8")
        return warn("file names in ASCII only", "folders and rows with other letters may not be found", fix)
    if text.lower().replace("-", "") not in ("utf8", "ascii"):
        fix = remedies.environment_variable(s.report, "PYTHONUTF8", "1")
        consequence = f"data is read as UTF-8 here, whatever the locale; other tools may read it as {text}"
        return note(f"the locale is {text}", consequence, fix)
    return ok(f"file names {names}, text {text}")


def clock(s: CheckContext) -> Finding:
    """A clock that is behind makes every certificate invalid."""
    behind = s.here.clock_behind_seconds
    if behind is None:
        return skipped("only looked at on this machine")
    if behind <= 0:
        return ok("not behind this program's own files")
    fix = remedies.by_system(
        s.report,
        windows=remedies.command("w32tm /resync"),
        linux=remedies.command("sudo hwclock -s" if s.wsl else "sudo timedatectl set-ntp true"),
        macos=remedies.command("sudo sntp -sS time.apple.com"),
    )
    return warn(
        f"the clock is {behind / 86400:.0f} days behind", "secure downloads fail: no certificate is valid yet", fix
    )


def long_paths(s: CheckContext) -> Finding:
    """Windows' limit of 260 letters, which a hub cache below a deep folder reaches."""
    if not s.report.is_windows:
        return skipped("for Windows only")
    if s.here.long_paths is None:
        return skipped("its registry was not read")
    if s.here.long_paths:
        return ok("longer than 260 letters allowed")
    key = r"HKLM\SYSTEM\CurrentControlSet\Control\FileSystem"
    line = f"reg add {key} /v LongPathsEnabled /t REG_DWORD /d 1 /f"
    fix = remedies.command(line, say=f"as administrator: {line}")
    if (s.here.longest_path or 0) + BELOW_THE_OUTPUT >= LONGEST_WINDOWS_PATH:
        seen = f"paths end at 260 letters, and this folder's has {s.here.longest_path} already"
        return warn(seen, "checkpoints may not be written", fix)
    return note("paths end at 260 letters", "deep output or cache folders may fail", fix)
