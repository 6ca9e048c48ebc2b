"""``help`` and ``version``."""

from qlora_run.cli.commands import Command


def run(command: Command) -> int:
    """Print and be done. Raises UserError for a topic that nothing is called."""
    if command.name == "version":
        from importlib.metadata import version

        print(f"qlora-run {version('qlora-run')}")
        return 0
    from qlora_run.cli.help import explain

    print(explain(command.options.get("topic")))
    return 0
