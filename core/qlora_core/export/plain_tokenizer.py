"""Whether plain transformers reads a tokenizer folder as training did, and the class that makes it do so."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qlora_core.data.chat.tokenizer_files import TokenizerFiles, read_json, read_tokenizer

PLAIN_CLASS = "PreTrainedTokenizerFast"
"""Takes tokenizer.json as it is, in transformers 4 and 5."""
OWN_CODE = "plain_tokenizer"
"""Name of the Python file that hands transformers ``PLAIN_CLASS`` where it is told to run a folder's own code."""
CODE = f"""import transformers


class {PLAIN_CLASS}(transformers.{PLAIN_CLASS}):
    pass
"""
"""A class of its own: transformers marks what it loads from a folder's code, and would mark its own class for good."""
UNKNOWN_TO_OLDER = (None, "TokenizersBackend", "PythonBackend")
TEXTS = (
    "Hello  world, 1234567.89 is it?",
    " the Fox\n\n  I'm 42, don't THEY'RE\t\tx=[1,2];",
    "naïve café cafe\u0301 ﬁ 你好，世界 😀 Привет",
    "\n<b>A</b>\r\n   e.g. this_is(fine) !",
)
TOKENS_TRIED = 64


def read_alike(folder: Path, trust_remote_code: bool = False) -> str | None:
    """Let ``AutoTokenizer`` give the tokens of tokenizer.json: name another class where that helps.

    transformers 5 builds parts of a tokenizer anew from the class that tokenizer_config.json names. For some
    architectures (Qwen 2) it takes their own class whatever is named, unless the folder has code of its own.

    Returns:
        What is still different, ``None`` if nothing is.
    """
    path = folder / "tokenizer_config.json"
    config, files = read_json(path), read_tokenizer(folder)
    own_code = "auto_map" in config
    if not own_code and _is_unknown(config.get("tokenizer_class")):
        config = _name_class(path, config)
    if _reads(folder, files, trust_remote_code):
        return None
    if not own_code or not trust_remote_code:
        config = _name_class(path, config)
        if _reads(folder, files, trust_remote_code):
            return None
    if not own_code and _reads_by_code(folder, config, files):
        return None
    return f"AutoTokenizer does not give the tokens of tokenizer.json, which were trained on; {PLAIN_CLASS} does"


def _name_class(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    named = config | {"tokenizer_class": PLAIN_CLASS}
    _write(path, named)
    return named


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def _reads_by_code(folder: Path, config: dict[str, Any], files: TokenizerFiles) -> bool:
    """Name the class as code of the folder's own, if that helps: it is run by those alone who allow a folder's code.

    Everybody else gets ``PLAIN_CLASS`` by its name, as transformers then forces none.
    """
    code, path = folder / f"{OWN_CODE}.py", folder / "tokenizer_config.json"
    before = path.read_bytes()
    _write(path, config | {"auto_map": {"AutoTokenizer": [None, f"{OWN_CODE}.{PLAIN_CLASS}"]}})
    code.write_text(CODE, encoding="utf-8", newline="\n")
    if _reads(folder, files, trust_remote_code=False):
        return True
    path.write_bytes(before)
    code.unlink()
    return False


def _is_unknown(name: Any) -> bool:
    """Whether transformers 4 knows no such class."""
    if name in UNKNOWN_TO_OLDER or not isinstance(name, str):
        return True
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    return tokenizer_class_from_name(name) is None and tokenizer_class_from_name(f"{name}Fast") is None


def _reads(folder: Path, files: TokenizerFiles, trust_remote_code: bool) -> bool:
    """Whether transformers gives the same tokens for texts of many kinds, and the same text for tokens."""
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        return all(_same(theirs, files.tokenizer.encode, files.tokenizer.decode, text) for text in _texts(files))
    except Exception:  # a class that cannot read this tokenizer.json raises whatever it meets
        return False


def _same(theirs: Any, encode: Callable[..., Any], decode: Callable[..., str], text: str) -> bool:
    ids = encode(text, add_special_tokens=False).ids
    if theirs(text, add_special_tokens=False)["input_ids"] != ids:
        return False
    return bool(theirs.decode(ids, clean_up_tokenization_spaces=False) == decode(ids, skip_special_tokens=False))


def _texts(files: TokenizerFiles) -> Iterator[str]:
    yield from TEXTS
    tokens = dict.fromkeys((*files.special_tokens.values(), *files.end_tokens, *sorted(files.added_tokens)))
    for token in list(tokens)[:TOKENS_TRIED]:
        yield f"{token}user\nThe {token} fox{token}\n {token} Yes {token}"
