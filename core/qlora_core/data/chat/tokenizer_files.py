"""What a model folder says of its tokenizer: special tokens, end tokens, chat template. Old and new layouts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from qlora_profiles.errors import UserError
from qlora_profiles.suggest import did_you_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


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
    config = _json(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(folder, config, tokenizer)
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
        model_type=str(_json(folder / "config.json").get("model_type")),
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


def _json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}  is not JSON: {error}", "copy or download the model again") from error
    return value if isinstance(value, dict) else {}


def _text(token: Any) -> str | None:
    """A token as text: it is stored as text or as an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _special_tokens(folder: Path, config: Mapping[str, Any], tokenizer: "Tokenizer") -> dict[str, str]:
    """Named special tokens. Old layouts keep them in a file of their own, which wins there."""
    named = dict(config)
    if "added_tokens_decoder" not in config:
        named |= _json(folder / "special_tokens_map.json")
    found = {name: text for name in NAMED_TOKENS if (text := _text(named.get(name)))}
    for name in ("bos_token", "eos_token"):
        if name not in found and (tokens := _tokens_by_id(folder, f"{name}_id", tokenizer)):
            found[name] = tokens[0]
    return found


def _tokens_by_id(folder: Path, key: str, tokenizer: "Tokenizer") -> list[str]:
    """Tokens that the model's own settings name by number, one or a list."""
    ids: list[Any] = []
    for file in ("generation_config.json", "config.json"):
        settings = _json(folder / file)
        for holder in (settings, settings.get("text_config") or {}):
            value = holder.get(key)
            ids += value if isinstance(value, list) else [value]
    numbers = dict.fromkeys(number for number in ids if isinstance(number, int))
    return [token for number in numbers if (token := tokenizer.id_to_token(number)) is not None]


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


def _template(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, str]:
    """The tokenizer's own chat template and the file it is in; a file of its own wins."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8"), file.name
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
