"""What a model folder says of its tokenizer: special tokens, end tokens, chat template. Old and new layouts."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from qlora_profiles.errors import UserError
from qlora_profiles.suggest import did_you_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE_TOKENS = ("additional_special_tokens", "extra_special_tokens")
TOKEN_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
BRACKETED = re.compile(r"[<\[{|].*[>\]}|]")
"""What a special token looks like; a number of a model's settings may name any word where it was left at a default."""


class TokenizerFiles(Struct, frozen=True, kw_only=True):
    """The tokenizer of a folder and what its other files say.

    ``special_tokens`` maps names (``bos_token``) to text. ``end_tokens`` are all that the model's settings
    stop generation on. ``added_tokens`` are those that text is never cut inside of.
    ``adds_bos`` is whether the tokenizer puts the bos token in front by itself. ``template_file`` says
    where ``template`` was found. ``model_type`` is the model's, where its config lies beside the tokenizer.
    """

    tokenizer: "Tokenizer"
    special_tokens: Mapping[str, str]
    end_tokens: tuple[str, ...]
    added_tokens: frozenset[str]
    adds_bos: bool
    template: str | None
    template_file: str
    model_type: str


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Read a tokenizer folder.

    Raises:
        UserError: the folder has no tokenizer.json, or a file of it is damaged.
    """
    tokenizer = _tokenizer(folder)
    config = read_json(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(folder, config, tokenizer)
    described = config.get("added_tokens_decoder")
    named = _named_tokens(folder, config, special_tokens)
    _mark_special(tokenizer, named, len(described) if isinstance(described, Mapping) else 0)
    adds_bos = _adds(tokenizer, special_tokens.get("bos_token"))
    _make_neutral(tokenizer)
    template, template_file = _template(folder, config)
    added = frozenset(token.content for token in tokenizer.get_added_tokens_decoder().values())
    return TokenizerFiles(
        tokenizer=tokenizer,
        special_tokens=special_tokens,
        end_tokens=_end_tokens(folder, special_tokens, tokenizer),
        added_tokens=added,
        adds_bos=adds_bos,
        template=template,
        template_file=template_file,
        model_type=str(read_json(folder / "config.json").get("model_type")),
    )


def _tokenizer(folder: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise _no_tokenizer(folder)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path}  is damaged: {error}", "copy or download the model again") from error


def _no_tokenizer(folder: Path) -> UserError:
    if not folder.is_dir():
        siblings = [other.name for other in folder.parent.iterdir() if other.is_dir()] if folder.parent.is_dir() else []
        near = did_you_mean(folder.name, siblings)
        return UserError(f"{folder}  no such folder{'; did you mean ' + ' or '.join(near) + '?' if near else ''}")
    call = f"from transformers import AutoTokenizer as T; T.from_pretrained(r'{folder}').save_pretrained(r'{folder}')"
    return UserError(f"{folder}  has no tokenizer.json", f'python -c "{call}"')


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}  is not JSON: {error}", "copy or download the model again") from error
    return value if isinstance(value, dict) else {}


def token_text(token: Any) -> str | None:
    """A token as text: it is stored as text or as an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _special_tokens(folder: Path, config: Mapping[str, Any], tokenizer: "Tokenizer") -> dict[str, str]:
    """Named special tokens. Old layouts keep them in a file of their own, which wins there."""
    named = named_in_files(folder, config)
    found = {name: text for name in NAMED_TOKENS if (text := token_text(named.get(name)))}
    for name in ("bos_token", "eos_token"):
        if name not in found and (tokens := _tokens_by_id(folder, f"{name}_id", tokenizer)):
            found[name] = tokens[0]
    return found


def named_in_files(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's own settings, with those of the file that old layouts keep special tokens in."""
    if "added_tokens_decoder" in config:
        return dict(config)
    return dict(config) | read_json(folder / "special_tokens_map.json")


def _named_tokens(folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> Iterator[Any]:
    """Every token, as text or as an object, that transformers takes out of text whole: files beside tokenizer.json
    name it. First those that the tokenizer's own settings describe, which count for more than tokenizer.json."""
    listed = config.get("added_tokens_decoder")
    yield from listed.values() if isinstance(listed, Mapping) else read_json(folder / "added_tokens.json")
    named = named_in_files(folder, config)
    yield from (named[name] if token_text(named.get(name)) else text for name, text in special_tokens.items())
    for key in MORE_TOKENS:
        more = named.get(key)
        yield from more.values() if isinstance(more, Mapping) else more if isinstance(more, list) else ()


def _mark_special(tokenizer: "Tokenizer", named: Iterator[Any], described: int) -> None:
    """Let the tokenizer take ``named`` tokens whole where they are words of its vocabulary; the first ``described``
    with the flags that they have there, even where tokenizer.json has others."""
    from tokenizers import AddedToken

    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for number, token in enumerate(named):
        text = token_text(token)
        if text is None or tokenizer.token_to_id(text) is None or (text in known and number >= described):
            continue
        flags = {key: bool(token[key]) for key in TOKEN_FLAGS if key in token} if isinstance(token, Mapping) else {}
        wanted = AddedToken(text, **({"special": True} | flags))
        if repr(wanted) != repr(known.get(text)):
            tokenizer.add_tokens([wanted])
            known[text] = wanted


def _tokens_by_id(folder: Path, key: str, tokenizer: "Tokenizer") -> list[str]:
    """Tokens that the model's own settings name by number, one or a list."""
    ids: list[Any] = []
    for file in ("generation_config.json", "config.json"):
        settings = read_json(folder / file)
        for holder in (settings, settings.get("text_config") or {}):
            value = holder.get(key)
            ids += value if isinstance(value, list) else [value]
    numbers = dict.fromkeys(number for number in ids if isinstance(number, int) and 0 <= number < 2**32)
    tokens = [token for number in numbers if (token := tokenizer.id_to_token(number)) is not None]
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return [token for token in tokens if token in added or BRACKETED.search(token)]


def _end_tokens(folder: Path, special_tokens: Mapping[str, str], tokenizer: "Tokenizer") -> tuple[str, ...]:
    eos = [special_tokens["eos_token"]] if "eos_token" in special_tokens else []
    known = [token for token in eos if tokenizer.token_to_id(token) is not None]
    return tuple(dict.fromkeys([*known, *_tokens_by_id(folder, "eos_token_id", tokenizer)]))


def _adds(tokenizer: "Tokenizer", token: str | None) -> bool:
    """Whether the tokenizer puts ``token`` in front of a text by itself."""
    bos = tokenizer.token_to_id(token) if token else None
    return bos is not None and tokenizer.encode("a").ids[:1] == [bos]


def _make_neutral(tokenizer: "Tokenizer") -> None:
    """No padding or cutting that the file may hold, and offsets that keep white space.

    Post-processors add special tokens, which templates write themselves, and trim white space off the
    offsets, which would hide where a token begins; one that does neither takes their place.
    """
    from tokenizers import processors

    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}  is not UTF-8: {error}", "copy or download the model again") from error


def _template(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, str]:
    """The tokenizer's own chat template and the file it is in; a file of its own wins."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _text_of(file), file.name
    stored = config.get("chat_template")
    if isinstance(stored, list):
        stored = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, Mapping)}
    if isinstance(stored, Mapping):
        if "default" not in stored:
            names = ", ".join(map(str, stored))
            raise UserError(
                f"{folder}  has chat templates {names}, but none called default", "--chat-template FILE.jinja"
            )
        stored = stored["default"]
    return (stored if isinstance(stored, str) and stored.strip() else None), "tokenizer_config.json"
