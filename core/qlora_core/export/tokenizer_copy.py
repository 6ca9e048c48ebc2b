"""The base's tokenizer beside what was trained: its files as they are, but for the few words that must differ.

transformers rebuilds a tokenizer as it saves it, and changes some: pre-tokenizers, normalizers and the space in front
are taken from the class that tokenizer_config.json names. So files are copied; JSON is edited only where plain
transformers would otherwise read other tokens, another template or another end than training did.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qlora_core.data.chat.tokenizer_files import TokenizerFiles, named_in_files, read_json, read_tokenizer, token_text
from qlora_core.export.plain_tokenizer import read_alike

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
PROCESSOR_TEMPLATE = "chat_template.json"
NAMES = (
    "tokenizer.json",
    CONFIG,
    SPECIAL_TOKENS,
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    TEMPLATE,
    PROCESSOR_TEMPLATE,
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
PATTERNS = ("*.model", "*.tiktoken", "additional_chat_templates/*.jinja")
CODE = "*.py"


class Trained(NamedTuple):
    """How the tokenizer was used: the chat template (jinja), and the number of the token that ends an answer in it."""

    template: str
    stop_id: int


def copy_tokenizer(source: Path, target: Path, trained: Trained, *, trust_remote_code: bool = False) -> str | None:
    """Copy a base's tokenizer into ``target`` and say there how it was trained with.

    Returns:
        Why plain transformers still reads other tokens than were trained on; ``None`` where it reads the same.

    Raises:
        UserError: ``source`` has no tokenizer, or a damaged one.
    """
    files = read_tokenizer(source)
    copy_files(source, target, code=trust_remote_code)
    stop = files.tokenizer.id_to_token(trained.stop_id) or files.special_tokens.get("eos_token", "")
    template = _with_own_end(trained.template, stop, files)
    _write_template(target, template, files)
    _edit(target / CONFIG, lambda config: _tokenizer_config(config, target, files, template, stop))
    _edit(target / SPECIAL_TOKENS, lambda tokens: _replace_token(tokens, "eos_token", stop), new=False)
    return read_alike(target, trust_remote_code)


def copy_files(source: Path, target: Path, *, code: bool) -> None:
    """Copy the files of a tokenizer byte for byte, and with ``code`` the Python files that may be its own."""
    target.mkdir(parents=True, exist_ok=True)
    matched = (path for pattern in (*PATTERNS, *((CODE,) if code else ())) for path in source.glob(pattern))
    for path in (*(source / name for name in NAMES), *matched):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)  # a hub's cache holds links


def _with_own_end(template: str, stop: str, files: TokenizerFiles) -> str:
    """The template, which goes on writing the base's own ``eos_token`` where the trained ``stop`` takes its place."""
    own = files.special_tokens.get("eos_token", "")
    if own == stop or "eos_token" not in template:
        return template
    return "{% set eos_token = " + json.dumps(own, ensure_ascii=False) + " %}\n" + template  # the tag takes the newline


def _write_template(target: Path, template: str, files: TokenizerFiles) -> None:
    """Put the template where transformers looks first, unless the base's own file says the same or it has none."""
    if template == files.template and not (target / TEMPLATE).is_file():
        return
    if template != files.template:
        (target / TEMPLATE).write_text(template, encoding="utf-8", newline="\n")
    if (target / PROCESSOR_TEMPLATE).is_file():
        _edit(target / PROCESSOR_TEMPLATE, lambda stored: stored | {"chat_template": template})


def _tokenizer_config(
    config: dict[str, Any], target: Path, files: TokenizerFiles, template: str, stop: str
) -> dict[str, Any]:
    """tokenizer_config.json with the template, the end and the tokens that only the model's settings name."""
    named = named_in_files(target, config)
    changed = config
    for name, text in files.special_tokens.items():
        if token_text(named.get(name)) is None:
            changed = changed | {name: text}
    changed = _replace_token(changed, "eos_token", stop)
    if template != files.template or "chat_template" in config:
        changed = changed | {"chat_template": _stored_template(config.get("chat_template"), template)}
    return _for_older(changed, target)


def _replace_token(tokens: dict[str, Any], name: str, text: str) -> dict[str, Any]:
    return tokens if token_text(tokens.get(name)) == text else tokens | {name: text}


def _stored_template(stored: Any, template: str) -> Any:
    """What older transformers reads: the template itself, or a list of named ones, whose default it becomes."""
    default = {"name": "default", "template": template}
    if isinstance(stored, list):
        named = [entry for entry in stored if isinstance(entry, Mapping)]
        if not any(entry.get("name") == "default" for entry in named):
            return [default, *named]
        return [dict(entry) | default if entry.get("name") == "default" else entry for entry in named]
    return dict(stored) | {"default": template} if isinstance(stored, Mapping) else template


def _for_older(config: dict[str, Any], target: Path) -> dict[str, Any]:
    """What transformers 4 takes for granted where 5 looks into tokenizer.json itself."""
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # 4 wants names for these, and has another key for a list
        kept = {key: value for key, value in config.items() if key != "extra_special_tokens"}
        config = kept | {"additional_special_tokens": [*kept.get("additional_special_tokens", []), *extra]}
    cutting = read_json(target / "tokenizer.json").get("pre_tokenizer") or {}
    space = cutting.get("add_prefix_space") if cutting.get("type") == "ByteLevel" else None
    if space is not None and space != config.get("add_prefix_space", False):
        config = config | {"add_prefix_space": space}
    return config


def _edit(path: Path, change: Any, *, new: bool = True) -> None:
    """Write a JSON file again only where ``change`` changes what it holds."""
    if not path.is_file() and not new:
        return
    before = read_json(path)
    after = change(before)
    if after != before:
        path.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
