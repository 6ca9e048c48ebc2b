"""What mends something, in the words and the commands of the system at hand. Nothing here needs PowerShell."""

from qlora_profiles.hardware import HardwareReport
from qlora_run.doctor.diagnosis import Fix

PIP = "python -m pip install"


def place(text: str) -> Fix:
    """A setting, or something that only a person can do."""
    return Fix(say=text)


def command(*lines: str, say: str | None = None) -> Fix:
    """Commands that a person runs; the last one is named."""
    return Fix(say=say or lines[-1], commands=lines)


def install(*packages: str, force: bool = False) -> Fix:
    """Packages into this Python environment."""
    flags = " --force-reinstall --no-deps" if force else ""
    quoted = " ".join(f'"{name}"' if set(name) & set("<>=!~ ") else name for name in packages)
    line = f"{PIP}{flags} {quoted}"
    return Fix(say=line, commands=(line,), safe=True)


def torch_build(backend: str = "auto", version: str = "") -> Fix:
    """torch for this machine's card: uv looks at the driver and picks the build."""
    line = f"uv pip install torch --torch-backend={backend} --reinstall-package torch"
    if version:
        line = line.replace("torch --", f'"torch{version}" --', 1)
    return Fix(say=line, commands=(f"{PIP} uv", line), safe=True)


def by_system(report: HardwareReport, *, windows: Fix, linux: Fix, macos: Fix | None = None) -> Fix:
    """The remedy of the system that was looked at; WSL is Linux."""
    if report.is_windows:
        return windows
    return macos or linux if report.platform.system == "macos" else linux


def driver(report: HardwareReport) -> Fix:
    """NVIDIA's driver; in WSL it is the one of Windows."""
    if report.platform.wsl:
        return place("install the newest NVIDIA driver in Windows (none inside WSL), then: wsl --shutdown")
    linux = place("install the newest driver with your distribution's tool (Ubuntu: sudo ubuntu-drivers install)")
    return by_system(report, windows=place("install the newest driver with the NVIDIA App, then restart"), linux=linux)


def environment_variable(report: HardwareReport, name: str, value: str) -> Fix:
    """A variable, for good on Windows and for this shell elsewhere."""
    lines = command(f"setx {name} {value}", say=f"setx {name} {value}  (then a new console)")
    return by_system(report, windows=lines, linux=command(f"export {name}={value}"))


def page_file(gib: int) -> Fix:
    """Windows' dialog for the page file."""
    say = f"SystemPropertiesPerformance: Advanced, Virtual memory, at least {gib} GB; then restart"
    return Fix(say=say, commands=("SystemPropertiesPerformance.exe",))


def wsl_memory(gib: int) -> Fix:
    """WSL's share of the machine, which is half unless a file in Windows says otherwise."""
    return place(f"in Windows, %UserProfile%\\.wslconfig: [wsl2] memory={gib}GB; then: wsl --shutdown")
