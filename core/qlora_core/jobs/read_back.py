"""``python -m qlora_core.jobs.read_back``: saved folders, loaded as a stranger would.

Plain transformers, PEFT and torch: neither our tokenizer nor our templates, loading or kernels. It imports at once,
and then waits for the path of a ``ReadBackJob`` on standard input; a line of JSON is the answer.
"""

import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any

import msgspec

from qlora_core.export.read_back import Finding, Forward, ReadBackJob, SavedFolder, SavedRow
from qlora_core.model.bitsandbytes import import_bitsandbytes
from qlora_profiles.errors import first_line

Fault = str


def check(job: ReadBackJob, folder: SavedFolder) -> Finding:
    """What a folder came to."""
    faults = list(tokenizer_faults(job, Path(folder.path)))
    if folder.forward is None:
        return Finding(faults=faults, unchecked=[folder.why_not])
    unchecked: list[str] = []
    compared = False
    try:
        faults += model_faults(job, folder.path, folder.forward)
        compared = folder.forward.logits is not None
    except _Unchecked as problem:
        unchecked.append(str(problem))
    return Finding(faults=faults, unchecked=unchecked, logits=compared)


class _Unchecked(Exception):
    """Something could not be tried, for a reason that is not the folder's."""


def tokenizer_faults(job: ReadBackJob, folder: Path) -> Iterator[Fault]:
    """What the saved tokenizer and template do differently from what was trained on."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=job.trust_remote_code)
    except Exception as error:
        yield f"its tokenizer cannot be loaded ({first_line(error)[:300]})"
        return
    if job.stop_id is not None and tokenizer.eos_token_id != job.stop_id:
        trained = tokenizer.convert_ids_to_tokens(job.stop_id)
        yield f"its eos is {tokenizer.eos_token!r}, answers were trained to end on {trained!r}"
    with _Day(job.today):
        rows = [_as_rendered(tokenizer, row, job.stop_id) for row in job.rows]
        yield from _told("render another text", rows, lambda row: not _renders_alike(tokenizer, row))
        yield from _told("get other tokens", rows, lambda row: not _encodes_alike(tokenizer, row))


def _as_rendered(tokenizer: Any, row: SavedRow, stop_id: int | None) -> SavedRow:
    """The row without the end of its last answer, where the template writes none there and training put it."""
    if row.messages is None or stop_id is None or row.ids[-1:] != [stop_id]:
        return row
    stop = tokenizer.convert_ids_to_tokens(stop_id)
    with suppress(Exception):  # told where the texts are compared
        text = tokenizer.apply_chat_template(row.messages, tools=row.tools, tokenize=False)
        if text + stop == row.text:
            return msgspec.structs.replace(row, text=text, ids=row.ids[:-1])
    return row


def _told(what: str, rows: Sequence[SavedRow], differs: Callable[[SavedRow], bool]) -> Iterator[Fault]:
    lines = []
    for row in rows:
        try:
            wrong = differs(row)
        except Exception as error:  # a template is somebody's program
            yield f"row {row.line} cannot be rendered ({first_line(error)[:300]})"
            return
        lines += [row.line] if wrong else []
    if lines:
        yield f"{len(lines)} of {len(rows)} rows {what} (the first: row {lines[0]})"


def _renders_alike(tokenizer: Any, row: SavedRow) -> bool:
    if row.messages is None:
        return True
    text = tokenizer.apply_chat_template(row.messages, tools=row.tools, tokenize=False)
    if row.prompt is None:
        return bool(text == row.text)
    asked = tokenizer.apply_chat_template(row.messages[:-1], tokenize=False, add_generation_prompt=True)
    return bool(text == row.text and asked == row.prompt)


def _encodes_alike(tokenizer: Any, row: SavedRow) -> bool:
    """The text that was trained on, and what a stranger gives for it: messages, or the text of a person."""
    if ids_in(tokenizer(row.text, add_special_tokens=False)) != row.ids:
        return False
    if row.messages is not None:
        return ids_in(tokenizer.apply_chat_template(row.messages, tools=row.tools, tokenize=True)) == row.ids
    return row.plain is None or ids_in(tokenizer(row.plain)) in (row.ids, row.ids[:-1])


def ids_in(encoded: Any) -> list[int]:
    """Token ids out of any form that transformers gives them in: a list, a list of one, or under ``input_ids``."""
    ids = encoded["input_ids"] if isinstance(encoded, Mapping) or hasattr(encoded, "input_ids") else encoded
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    return ids[0] if ids and isinstance(ids[0], list) else ids


class _Day:
    """What transformers tells a template that asks for the day; nothing changes where there is none."""

    def __init__(self, today: date | None) -> None:
        self._today = today

    def __enter__(self) -> None:
        from transformers.utils import chat_template_utils

        if self._today is None or not hasattr(chat_template_utils, "datetime"):
            return
        today: date = self._today

        class Fixed(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> "Fixed":
                return cls.combine(today, datetime.now(tz).time())

        chat_template_utils.datetime = Fixed

    def __exit__(self, *error: object) -> None:
        from transformers.utils import chat_template_utils

        if hasattr(chat_template_utils, "datetime"):
            chat_template_utils.datetime = datetime


def model_faults(job: ReadBackJob, path: str, forward: Forward) -> list[Fault]:
    """What the saved weights and settings do differently. Raises ``_Unchecked``: it cannot be tried here."""
    import torch

    from qlora_core.export import fingerprints

    try:
        model = _load(job, path, forward).eval()
        sums = fingerprints.model_sums(model) if forward.base is None else fingerprints.adapter_sums(model)
        faults = _weight_faults(fingerprints.differing(sums, forward.sums), len(forward.sums))
        faults += _stop_faults(model, forward)
        if forward.logits is not None:
            wanted = msgspec.convert(forward.logits, fingerprints.Logits)
            with _autocast(forward):
                apart = fingerprints.apart(fingerprints.logits_of(model, wanted.ids), wanted)
            if not apart <= forward.tolerance:
                faults.append(f"its logits are {apart:.2%} from the trained model's")
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _Unchecked(f"memory ran out ({first_line(error)[:80]})") from error
    except ImportError as error:
        raise _Unchecked(first_line(error)[:300]) from error
    except _Unloadable as error:
        faults = [f"it cannot be loaded ({error})"]
    finally:
        model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return faults


class _Unloadable(Exception):
    """Plain transformers or PEFT refuses the folder."""


def _load(job: ReadBackJob, path: str, forward: Forward) -> Any:
    """As the documentation says."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    arguments: dict[str, Any] = {"trust_remote_code": job.trust_remote_code, **forward.loading}
    if forward.quantisation is not None:
        arguments["quantization_config"] = BitsAndBytesConfig.from_dict(forward.quantisation)
    arguments |= {"dtype": forward.dtype, "device_map": {"": forward.device}}
    if forward.base is None:
        return _tried(lambda: AutoModelForCausalLM.from_pretrained(path, **arguments))
    from peft import PeftModel

    try:
        base = AutoModelForCausalLM.from_pretrained(forward.base, **arguments)
    except (OSError, ValueError) as error:
        raise _Unchecked(f"its base cannot be loaded ({first_line(error)[:300]})") from error
    return _tried(lambda: PeftModel.from_pretrained(base, path))


def _tried(load: Callable[[], Any]) -> Any:
    from torch import OutOfMemoryError

    try:
        return load()
    except (OutOfMemoryError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise _Unloadable(first_line(error)[:300]) from error


def _weight_faults(names: Sequence[str], count: int) -> list[Fault]:
    if not names:
        return []
    return [f"{len(names)} of {count} weights are not those that were trained (the first: {names[0]})"]


def _stop_faults(model: Any, forward: Forward) -> list[Fault]:
    """A whole model's own generation must end where answers were trained to end."""
    if forward.base is not None or not forward.stop_ids:
        return []
    named = model.generation_config.eos_token_id
    ends = named if isinstance(named, list) else [named]
    if forward.stop_ids[0] in ends:
        return []
    return [f"its generation ends on {ends}, answers were trained to end on token {forward.stop_ids[0]}"]


def _autocast(forward: Forward) -> Any:
    import torch

    if forward.autocast is None:
        return nullcontext()
    return torch.autocast(forward.device.partition(":")[0], getattr(torch, forward.autocast))


def _import(adapter: bool) -> None:
    """What takes the seconds; a missing package is told where it is needed."""
    import transformers.models.auto.modeling_auto
    import transformers.models.auto.tokenization_auto  # noqa: F401

    if adapter:
        with suppress(Exception):  # PEFT imports it, and it may be missing where nothing is quantised
            import_bitsandbytes("cpu")
        import peft  # noqa: F401


def main() -> int:
    """Import, wait to be told, answer."""
    gc.disable()
    warnings.filterwarnings("ignore")
    _import("--adapter" in sys.argv[1:])
    file = sys.stdin.readline().strip()
    if not file:
        return 0
    job = msgspec.json.decode(Path(file).read_bytes(), type=ReadBackJob)
    import torch

    if job.threads:
        torch.set_num_threads(job.threads)
    sys.stdout.write(msgspec.json.encode([check(job, folder) for folder in job.folders]).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
