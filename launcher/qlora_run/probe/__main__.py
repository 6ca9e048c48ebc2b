"""``python -m qlora_run.probe [FILE]``: print the report of this machine, or write it to a file."""

import argparse
import json
import sys
from pathlib import Path

from qlora_profiles.codec import save, to_json
from qlora_profiles.errors import EXIT_OK, EXIT_USER
from qlora_run.probe.survey import probe


def main(arguments: list[str]) -> int:
    """Print the report as JSON in ASCII, which every console and every redirection keeps intact, or save it."""
    parser = argparse.ArgumentParser(prog="python -m qlora_run.probe", description="Describe this machine as JSON.")
    parser.add_argument("file", nargs="?", type=Path, help="where to write it (default: print it)")
    file: Path | None = parser.parse_args(arguments).file
    report = probe()
    if file is None:
        sys.stdout.write(json.dumps(json.loads(to_json(report)), indent=2) + "\n")
        return EXIT_OK
    try:
        save(report, file)
    except OSError as error:
        sys.stderr.write(f"{file}: cannot be written ({error.strerror or error})\n")
        return EXIT_USER
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
