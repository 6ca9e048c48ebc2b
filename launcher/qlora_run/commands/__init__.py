"""One module a command; the table says which function runs it. Each imports what it needs when it runs."""

from collections.abc import Callable
from importlib import import_module

from qlora_run.cli.commands import Command

MODULES = {
    "train": "train",
    "plan": "plan",
    "data": "data",
    "doctor": "doctor",
    "profiles": "profiles",
    "recipes": "recipes",
    "resume": "replay",
    "replay": "replay",
    "chat": "chat",
    "infer": "chat",
    "merge": "merge",
    "demo": "demo",
    "help": "help",
    "version": "help",
}


def handler(command: Command) -> Callable[[Command], int]:
    """The function that carries out ``command`` and returns the exit code; it may raise any QloraRunError."""
    run: Callable[[Command], int] = import_module(f"qlora_run.commands.{MODULES[command.name]}").run
    return run
