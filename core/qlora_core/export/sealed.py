"""What was trained, put on the disk for good, with digests by which damage is told from what was written."""

from pathlib import Path

from msgspec import Struct

from qlora_profiles import codec
from qlora_profiles.digests import digests_of, first_changed, sampled_digest
from qlora_profiles.durable import sync_tree
from qlora_profiles.errors import UserError
from qlora_profiles.run_folder import ADAPTER_CONFIG, BASE_RECORD, BEST_RECORD, DIGESTS

TEMPLATE = "chat_template.jinja"
COUNTED = (
    "*.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    ADAPTER_CONFIG,
    BASE_RECORD,
    BEST_RECORD,
    TEMPLATE,
)
"""Weights, tokenizer, and what says how strongly an adapter acts and where answers end. A model's own settings and
cards are for people to edit, and so is the template, which must be there."""


WHOLE_BYTES = 2**30
"""Larger files are sampled: a merged model of 16 GB would take ten seconds more at every start of a chat."""


class Digests(Struct, frozen=True, kw_only=True):
    """What ``digests.json`` says of the files that count, by name (``digests.sampled_digest``)."""

    files: dict[str, str]


def _digest(path: Path) -> str:
    return sampled_digest(path, WHOLE_BYTES)


def seal(folder: Path) -> None:
    """Write down the digests of a whole adapter or model, and wait until all of it is on the disk.

    Raises:
        OSError: the disk does not take it.
    """
    names = sorted({path.name for pattern in COUNTED for path in folder.glob(pattern)})
    codec.save(Digests(files=digests_of(folder, names, _digest)), folder / DIGESTS)
    sync_tree(folder)


def check_whole(folder: Path, fix: str) -> None:
    """Refuse what is no longer as it was written; what no digests lie beside counts as whole.

    Raises:
        UserError: a file was damaged, or the digests were; ``fix`` is the way on.
    """
    record = folder / DIGESTS
    if not record.is_file():
        return
    try:
        digests = codec.load(record, Digests).files
        counted = {
            name: digest for name, digest in digests.items() if name != TEMPLATE or not (folder / name).is_file()
        }
        changed = first_changed(folder, counted, _digest)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})", fix) from error
    if changed is not None:
        own = f"{fix}   or, if you changed it yourself: delete {record}"
        what = "damaged" if (folder / changed).is_file() else "gone"
        raise UserError(f"{folder / changed}: {what} since it was written", own)
