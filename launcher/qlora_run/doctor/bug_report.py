"""One file for a bug report: everything that the doctor saw, and nothing of the person whose machine it is."""

import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from qlora_profiles.hardware import HardwareReport
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.diagnosis import Diagnosis

SECRET_NAMES = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
SECRET_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|sk-[\w-]{16,}|gh[a-z]_[A-Za-z0-9]{16,}|eyJ[\w-]+\.[\w-]+\.[\w-]+)|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
ANY_HOME = re.compile(r"([\\/](?:home|Users)[\\/]+)(?!\(name\))[^\\/\s\"':]+")
"""Somebody else's home is no less private."""
SHORTEST_SECRET = 6
"""Letters: a shorter value of a secret variable is a switch (``1``, ``true``), not a secret."""
WORDS_OF_SYSTEMS = ("root", "user", "admin", "administrator", "localhost", "runner", "ubuntu")
"""User and host names that say nothing about anybody, and would spoil the text if they were cut out."""


class Private(msgspec.Struct, frozen=True, kw_only=True):
    """What must not leave this machine."""

    homes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()

    def hide(self, text: str) -> str:
        """``text`` with ``~``, ``(name)`` and ``(secret)`` for it."""
        text = SECRET_SHAPES.sub("(secret)", text)
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, "(secret)")
        for home in sorted(self.homes, key=len, reverse=True):
            text = re.sub(_path_pattern(home), "~", text, flags=re.IGNORECASE)
        for name in sorted(self.names, key=len, reverse=True):
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "(name)", text, flags=re.IGNORECASE)
        return ANY_HOME.sub(r"\1(name)", text)


def _path_pattern(home: str) -> str:
    """A folder with slashes of either kind, doubled where a string was quoted."""
    start = r"[\\/]+" if home[0] in "\\/" else ""
    return start + r"[\\/]+".join(re.escape(part) for part in _parts(home)) + r"(?![A-Za-z0-9_.-])"


def _parts(folder: str) -> list[str]:
    """The names in a path of any system."""
    return [part for part in re.split(r"[\\/]+", folder) if part]


def private(env: Mapping[str, str], hosts: Iterable[str] = (), users: Iterable[str] = ()) -> Private:
    """What an environment, and the names of host and user, give away."""
    homes = {env[name] for name in ("HOME", "USERPROFILE") if env.get(name)}
    homes = {home for home in homes if _parts(home)}
    known = {*users, *(_parts(home)[-1] for home in homes)}
    known |= {env[name] for name in ("USER", "USERNAME", "LOGNAME", "COMPUTERNAME", "HOSTNAME") if env.get(name)}
    known |= {part for host in hosts for part in (host, host.split(".")[0])}
    secrets = {v for name, v in env.items() if SECRET_NAMES.search(name) and len(v) >= SHORTEST_SECRET}
    return Private(
        homes=tuple(homes),
        names=tuple(name for name in known if name and name.lower() not in WORDS_OF_SYSTEMS),
        secrets=tuple(secrets),
    )


def this_person() -> Private:
    """What this process could give away, a stored token of the hub too."""
    found = private(os.environ, (socket.gethostname(),), _user())
    return msgspec.structs.replace(found, secrets=(*found.secrets, *_stored_token()))


def _user() -> list[str]:
    try:
        return [getpass.getuser()]
    except (OSError, KeyError, ImportError):
        return []


def _stored_token() -> list[str]:
    from huggingface_hub import get_token

    token = get_token()
    return [token] if token else []


def bug_report(context: CheckContext, diagnosis: Diagnosis, hidden: Private) -> dict[str, Any]:
    """The findings, the machine and the trials, without anything private."""
    whole = {
        "made_by": "qlora-run doctor --report",
        "summary": diagnosis.summary,
        "exit_code": diagnosis.exit_code,
        "checks": msgspec.to_builtins(diagnosis.checks),
        "machine": msgspec.to_builtins(_without_identity(context.report)),
        "trials": msgspec.to_builtins(dict(context.trials)),
        "plan": msgspec.to_builtins(context.plan.execution) if context.plan else None,
    }
    programs = tuple(p.name for gpu in context.report.gpus for p in gpu.processes if p.name)
    hidden = msgspec.structs.replace(hidden, names=(*hidden.names, *programs))
    clean: dict[str, Any] = cleaned(whole, hidden)
    return clean


def _without_identity(report: HardwareReport) -> HardwareReport:
    """The report without serial numbers and without the names of other people's programs."""
    gpus = tuple(
        msgspec.structs.replace(
            gpu,
            uuid=None,
            processes=tuple(msgspec.structs.replace(p, pid=0, name=None) for p in gpu.processes),
        )
        for gpu in report.gpus
    )
    return msgspec.structs.replace(report, gpus=gpus, cuda_visible_devices=None)


def cleaned(value: Any, hidden: Private) -> Any:
    """A builtin value with every text in it cleaned, keys too."""
    if isinstance(value, str):
        return hidden.hide(value)
    if isinstance(value, Mapping):
        return {cleaned(key, hidden): cleaned(inner, hidden) for key, inner in value.items()}
    return [cleaned(inner, hidden) for inner in value] if isinstance(value, list | tuple) else value
