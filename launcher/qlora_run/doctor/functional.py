"""Findings that need something to be computed: in a child process with a time limit, so that a crash is a finding."""

import json
import subprocess
import sys
from typing import Any

from qlora_run.child import child_environment
from qlora_run.doctor.findings import Finding

TIME_LIMIT_SECONDS = 90


def findings(time_limit_seconds: float = TIME_LIMIT_SECONDS) -> list[Finding]:
    """Run the core's self-test and read its report."""
    report, problem = _self_test(time_limit_seconds)
    if report is None:
        return [Finding(id="4-bit", verdict="fail", seen=problem, fix="pip install --force-reinstall bitsandbytes")]
    return [_torch(report["torch"]), _nf4(report["nf4"])]


def _self_test(time_limit_seconds: float) -> tuple[dict[str, Any] | None, str]:
    """(the report, "") or (None, what happened instead)."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", "qlora_core.selftest"],
            capture_output=True,
            timeout=time_limit_seconds,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired:
        return None, f"a 4-bit product did not end within {time_limit_seconds:.0f} s"
    lines = [line for line in child.stdout.splitlines() if line.startswith("{")]
    if child.returncode != 0 or not lines:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return None, f"the 4-bit test died (exit {child.returncode}): {last}"
    return json.loads(lines[-1]), ""


def _torch(result: dict[str, Any]) -> Finding:
    if not result["ok"]:
        fix = "pip install --force-reinstall torch"
        return Finding(id="torch import", verdict="fail", seen=result["error"], fix=fix)
    wanted = result.get("capability")
    if wanted and not _has_code_for((wanted[0], wanted[1]), result["architectures"]):
        seen = f"torch {result['version']} has no code for this card (sm_{wanted[0]}{wanted[1]})"
        return Finding(id="torch import", verdict="fail", seen=seen, fix="pip install --upgrade torch")
    return Finding(id="torch import", verdict="ok", seen=f"{result['version']} imports")


def _has_code_for(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Compiled code of the same major version and an equal or lower minor one, or PTX that the driver compiles."""
    return any(_runs_on(capability, *name.split("_", 1)) for name in architectures if "_" in name)


def _runs_on(capability: tuple[int, int], kind: str, number: str) -> bool:
    """``sm`` and ``86``, or ``compute`` and ``90a``."""
    version = divmod(int("".join(c for c in number if c.isdigit())), 10)
    if kind == "compute":
        return version <= capability
    return version[0] == capability[0] and version[1] <= capability[1]


def _nf4(result: dict[str, Any]) -> Finding:
    if result["ok"]:
        where = "this GPU" if result["device"] == "cuda" else "the CPU"
        return Finding(id="4-bit", verdict="ok", seen=f"a real NF4 product ran on {where} in {result['seconds']} s")
    return Finding(id="4-bit", verdict="fail", seen=result["error"], fix="pip install --force-reinstall bitsandbytes")
