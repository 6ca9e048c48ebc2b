"""Foreign names: how a flag or key of another training script is read here.

What a script writes is taken for what it *means*: renamed, converted, split over two settings, put together with a
second one (batch x accumulation), or left out with the reason. The rows are in :mod:`qlora_profiles.aliases`;
values that count together are put together in :mod:`qlora_profiles.alias_parts`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import Struct

from qlora_profiles.errors import UserError
from qlora_profiles.registry import settings

Where = Literal["train", "infer", "merge"]

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
NULL_WORDS = ("none", "null", "")


class Alias(Struct, frozen=True, kw_only=True):
    """A name that is no setting of ours, or a setting that is also read in foreign words.

    ``to``       the settings (or options of the command) that it decides; empty: it is read and left out.
    ``words``    special values and what they set; lower case, null for None.
    ``free``     with ``words``: any other value goes to ``to[0]``; without ``free`` it is refused.
    ``convert``  other values, before they go to ``to[0]``; raises ValueError with what is allowed.
    ``part``     the value is one part of ``to[0]``, which :mod:`alias_parts` puts together.
    ``refused``  values that are understood and impossible: value -> the way on.
    ``note``     what differs, or why nothing is set. Told whenever a value sets nothing.
    ``section``  the family of config sections outside which the name means nothing.
    ``adds``     adds to a list setting, where several may be given.
    """

    name: str
    to: tuple[str, ...] = ()
    words: Mapping[str, Mapping[str, Any]] = {}
    free: bool = False
    convert: Callable[[Any], Any] | None = None
    part: str | None = None
    refused: Mapping[str, str] = {}
    note: str = ""
    section: str | None = None
    where: tuple[Where, ...] = ("train",)
    adds: bool = False

    @property
    def key(self) -> str:
        """What a free value sets: the part, else the first setting."""
        return self.part or self.to[0]

    @property
    def open(self) -> bool:
        """True where values beside ``words`` are read."""
        return self.free or not self.words

    @property
    def takes(self) -> Literal["flag", "either", "value"]:
        """On the command line: no value needed, a value or none, or always a value."""
        if "true" in self.words:
            return "either" if self.open else "flag"
        if not self.to and self.open:
            return "either"
        target = settings().get(self.to[0]) if self.to and not self.words else None
        return "flag" if target is not None and target.kind is bool else "value"


def word_of(raw: Any) -> str:
    """A raw value as the word that tables of words are written in: ``True`` is ``"true"``, ``None`` is ``"null"``."""
    text = str(raw).strip().lower()
    return "null" if text in NULL_WORDS else text


def shown(raw: Any) -> str:
    """A raw value as it is quoted in a message: ``true``, ``none``, ``q_proj,v_proj``."""
    if isinstance(raw, bool):
        return str(raw).lower()
    return ",".join(map(str, raw)) if isinstance(raw, list | tuple) else "none" if raw is None else str(raw)


def meaning(alias: Alias, raw: Any) -> dict[str, Any]:
    """What ``raw`` sets: setting, part or option -> raw value; empty when it is left out.

    Raises:
        UserError: a value that the name cannot have; the message leaves the name to the caller.
    """
    word = _known_word(alias, word_of(raw))
    if word in alias.refused:
        raise UserError(f"{raw!r} has no counterpart", alias.refused[word])
    if word in alias.words:
        return dict(alias.words[word])
    if not alias.open:
        raise UserError(f"{raw!r} is not supported; one of {', '.join(alias.words)}")
    if not alias.to:
        return {}
    try:
        return {alias.key: alias.convert(raw) if alias.convert else raw}
    except ValueError as error:
        raise UserError(str(error)) from error


def _known_word(alias: Alias, word: str) -> str:
    """``yes`` and ``1`` count as true where the table speaks of true, and has no such word of its own."""
    if word in alias.words or "true" not in alias.words:
        return word
    return "true" if word in TRUE_WORDS else "false" if word in FALSE_WORDS else word
