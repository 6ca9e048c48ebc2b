"""Installed packages: there, in range, of the right build, and no pair that is known to be bad."""

import msgspec

from qlora_core.backends.unsloth import requirements
from qlora_profiles.versions import version_numbers
from qlora_run.doctor import remedies
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.diagnosis import Fix
from qlora_run.doctor.findings import Finding, fail, note, ok, skipped, warn
from qlora_run.doctor.known_bad import MachineVersions, known_bad
from qlora_run.machine.required_packages import TRAINING

NEEDED = (*TRAINING, "bitsandbytes", "tokenizers")
BUILD_OF = {"nvidia": "cuda", "amd": "rocm", "intel": "xpu", "apple": "mps"}
ON_CPU = "training falls back to the CPU, many times slower"
WITHOUT_4_BIT = "training falls back to 16-bit LoRA: models of about a third of the size"


def packages(s: CheckContext) -> Finding:
    """Everything that training imports, in the versions that it was made for."""
    missing = [name for name in NEEDED if s.report.version_of(name) is None]
    if missing:
        fix = remedies.torch_build() if missing == ["torch"] else remedies.install(*missing)
        consequence = WITHOUT_4_BIT if missing == ["bitsandbytes"] else "training cannot start"
        return fail(f"not installed: {', '.join(missing)}", consequence, fix)
    if s.here.unmet:
        names = [text.split(" (")[0] for text in s.here.unmet]
        return fail(
            f"not as needed: {', '.join(s.here.unmet)}", "training may break anywhere", remedies.install(*names)
        )
    return ok("all installed", ", ".join(f"{name} {s.report.packages.get(name, '?')}" for name in NEEDED))


def torch(s: CheckContext) -> Finding:
    """Whether the installed torch is a build for the card."""
    version, build = s.report.torch.version, s.report.torch.build
    if version is None:
        return fail("torch is not installed", "nothing can be computed", remedies.torch_build())
    wanted = next((BUILD_OF[gpu.vendor] for gpu in s.report.gpus if gpu.vendor == "nvidia"), None)
    if wanted and build != wanted:
        seen = f"torch {version} is a {build or 'CPU'} build: it cannot see the {s.nvidia[0].name}"
        return fail(seen, ON_CPU, _cuda_build(s), ", ".join(s.here.torch_folders))
    imported = s.found("torch", "version")
    if wanted and imported and s.found("torch", "device") == "cpu" and s.found("torch", "cuda") is None:
        seen = f"torch {imported} is imported, a build without CUDA, though {version} is installed"
        return fail(seen, ON_CPU, _cuda_build(s), ", ".join(s.here.torch_folders))
    other = next((gpu for gpu in s.others if BUILD_OF[gpu.vendor] != build), None)
    if not wanted and other and not s.nvidia:
        return _unused(s, other.name, version, build)
    words = f"CUDA {s.report.torch.cuda}" if s.report.torch.cuda else f"{build or 'unknown'} build"
    return ok(f"{version.split('+')[0]} ({words})", f"torch {version}")


def _cuda_build(s: CheckContext) -> Fix:
    """A build for the card: of several on the path the first one goes, else another one is installed."""
    if len(s.here.torch_folders) < 2:
        return remedies.torch_build()
    first, rest = s.here.torch_folders[0], [p for p in s.here.python_path if p != s.here.torch_folders[0]]
    if len(rest) == len(s.here.python_path):
        return remedies.command("python -m pip uninstall -y torch")
    joined = (";" if s.report.is_windows else ":").join(rest)
    fix = remedies.environment_variable(s.report, "PYTHONPATH", f'"{joined}"')
    return msgspec.structs.replace(fix, say=f"take {first} off PYTHONPATH")


def _unused(s: CheckContext, card: str, version: str, build: str | None) -> Finding:
    """Cards of other makers: training is planned for NVIDIA cards and the CPU, whatever torch could do there."""
    seen = f"torch {version} is a {build or 'CPU'} build: it does not use the {card}"
    return note(seen, "nothing is lost: training here is planned for NVIDIA cards and the CPU")


def driver(s: CheckContext) -> Finding:
    """A driver older than torch's CUDA cannot run it, save for minor versions of the same major one."""
    wanted, offered = s.report.torch.cuda, s.report.cuda_driver
    refused = s.found("torch", "refused")
    if s.nvidia and refused:
        return fail(f"torch cannot use the card: {refused}", ON_CPU, remedies.driver(s.report))
    if not s.nvidia or wanted is None:
        return skipped("no NVIDIA card with a CUDA build of torch")
    if offered is None:
        return note("the driver does not tell which CUDA it offers", evidence=s.report.unknown.get("cuda_driver", ""))
    version = s.nvidia[0].driver or "?"
    if version_numbers(offered)[0] < version_numbers(wanted)[0]:
        seen = f"driver {version} offers CUDA {offered}, torch needs {wanted}"
        return fail(seen, "torch cannot start the card", remedies.driver(s.report))
    return ok(f"{version} offers CUDA {offered}, torch needs {wanted}")


def pairs(s: CheckContext) -> list[Finding]:
    """Versions that are known not to work together, by the table of such pairs."""
    bad = known_bad(MachineVersions.of(s.report))
    findings = [
        (fail if one.verdict == "fail" else warn)(one.seen, one.consequence, one.fix(), one.evidence) for one in bad
    ]
    return findings or [ok("no pair of versions that is known to be bad")]


def unsloth_pins(s: CheckContext) -> Finding:
    """What Unsloth asks for, against what is installed."""
    if s.report.version_of("unsloth") is None:
        return skipped("unsloth is not installed")
    refused = requirements.missing(s.report)
    if refused:
        seen = f"Unsloth {refused}"
        return note(seen, "--backend unsloth is refused; the plain backend trains", remedies.place("--backend auto"))
    if not s.here.unsloth_unmet:
        return ok("Unsloth has all that it asks for")
    names = [text.split(" (")[0] for text in s.here.unsloth_unmet]
    seen = f"Unsloth asks for {', '.join(s.here.unsloth_unmet)}"
    return warn(seen, "--backend unsloth may break; the plain backend trains", remedies.install(*names))
