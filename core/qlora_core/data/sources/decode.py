"""Bytes to text: byte order marks, and a file that is not in the encoding it is read with."""

import codecs

from qlora_profiles.errors import UserError
from qlora_profiles.suggest import hint

COMMON_ENCODINGS = ("utf-8", "utf-16", "gbk", "gb18030", "big5", "shift_jis", "euc-kr", "cp1252", "latin-1")
DISPLAY = {"cp1252": "Windows-1252", "shift_jis": "Shift-JIS", "big5": "Big5"}
# encodings told by the share of characters in their script's range; set by hand, as all shares here, and held by
# tests/core/data/sources/test_encodings.py
SCRIPTS = (("shift_jis", "\u3040", "\u30ff", 0.3), ("euc_kr", "\uac00", "\ud7a3", 0.95))
SCRIPT_CHARACTERS = 8
BIG5_COMMON, BIG5_SHARE = (0xA1, 0xC6), 0.9
PROBE_BYTES = 4096
FEW_BAD_BYTES = 100  # one byte in so many may be damage
NO_LETTERS = "ÿþ"  # 0xff and 0xfe: letters of Windows-1252, and the most usual damage


def decode(data: bytes, encoding: str, name: str, *, keep_damage: bool = False) -> str:
    """The text of a file, without a byte order mark.

    Single damaged bytes in a UTF-8 file come back as lone surrogates, so that their rows can be told; with
    ``keep_damage`` also where they could be letters of another encoding.

    Raises:
        UserError: no such encoding, or one that does not read the file; names the one that does.
    """
    codec = _codec(encoding)
    try:
        text = data.decode(codec).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if codec == "utf-8" and (_is_damaged_utf8(data) or (keep_damage and _is_nearly_utf8(data))):
            return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        raise _wrong_encoding(data, encoding, name, error) from error
    if codec == "utf-8" and _is_mostly_zeros(data) and (guess := guess_encoding(data)):
        raise UserError(f"{name}  not UTF-8; reads cleanly as {guess.upper()}", f"--encoding {guess}")
    return text


def guess_encoding(data: bytes) -> str | None:
    """The encoding that reads all bytes as plausible text, or ``None``."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32" if _reads(data, "utf-32") else None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16" if _reads(data, "utf-16") else None
    if b"\0" in data[:PROBE_BYTES]:
        return _utf32_byte_order(data) or _utf16_byte_order(data)
    for encoding, first, last, share in SCRIPTS:
        if _has_script(data, encoding, first, last, share):
            return encoding
    for encoding in ("gbk", "gb18030"):
        if _is_chinese(data, encoding):
            return encoding
    if _is_big5(data):
        return "big5"
    return "cp1252" if _is_western(data) else None


def _codec(encoding: str) -> str:
    try:
        info = codecs.lookup(encoding)
        info.decode(b"")
    except (LookupError, UnicodeError, ValueError) as error:
        raise UserError(
            f"--encoding {encoding}: no such encoding{hint(encoding, COMMON_ENCODINGS)}", "--encoding utf-8"
        ) from error
    if not info._is_text_encoding:  # base64 and the like
        raise UserError(f"--encoding {encoding}: not an encoding of text", "--encoding utf-8")
    return info.name


def _wrong_encoding(data: bytes, encoding: str, name: str, error: UnicodeDecodeError) -> UserError:
    guess = guess_encoding(data)
    shown = "UTF-8" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    if guess and guess != _codec(encoding):
        reads = DISPLAY.get(guess, guess.upper())
        or_skip = ", or --skip-bad-rows if its few such bytes are damage" if _is_nearly_utf8(data) else ""
        return UserError(f"{name}  not {shown}; reads cleanly as {reads}", f"--encoding {guess}{or_skip}")
    line = data.count(b"\n", 0, error.start) + 1
    reason = f"not {shown} (byte 0x{data[error.start]:02x} has no meaning there)"
    return UserError(f"{name}:{line}  {reason}", "save it as UTF-8, or --encoding NAME")


def _is_damaged_utf8(data: bytes) -> bool:
    """Whether the text is UTF-8 apart from a few bytes: more good non-ASCII characters than bad ones."""
    if b"\0" in data[:PROBE_BYTES] or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    good = len(text) - len(text.encode("ascii", "ignore")) - bad
    return good > bad or (guess_encoding(data) is None and bad < len(text) // 100)


def _is_nearly_utf8(data: bytes) -> bool:
    """Whether so few bytes are not UTF-8 that whole rows can be set aside for them."""
    return b"\0" not in data[:PROBE_BYTES] and _bad_bytes(data) <= max(1, len(data) // FEW_BAD_BYTES)


def _is_mostly_zeros(data: bytes) -> bool:
    """Whether a zero byte stands beside most others, as in UTF-16 and UTF-32 of plain English."""
    probe = data[:PROBE_BYTES].rstrip(b"\0")
    return probe.count(0) * 3 >= len(probe)


def _bad_bytes(data: bytes) -> int:
    return sum("\udc80" <= char <= "\udcff" for char in data.decode("utf-8", "surrogateescape"))


def _reads(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _utf32_byte_order(data: bytes) -> str | None:
    """UTF-32 without a mark: no character needs its highest byte."""
    probe = data[: PROBE_BYTES // 4 * 4]
    for order, highest in (("utf-32-le", 3), ("utf-32-be", 0)):
        if len(data) % 4 == 0 and not any(probe[highest::4]) and _reads(data, order):
            return order
    return None


def _utf16_byte_order(data: bytes) -> str | None:
    """UTF-16 without a mark: the zero bytes of ASCII characters stand on one side only."""
    probe = data[:PROBE_BYTES]
    order = "utf-16-le" if probe[1::2].count(0) > probe[::2].count(0) else "utf-16-be"
    return order if _reads(data, order) else None


def _has_script(data: bytes, encoding: str, first: str, last: str, share: float) -> bool:
    """Whether at least ``share`` of the characters above ASCII lie in one script."""
    try:
        above = [char for char in data.decode(encoding) if char > "\x7f"]
    except UnicodeDecodeError:
        return False
    inside = sum(first <= char <= last for char in above)
    return inside >= SCRIPT_CHARACTERS and inside >= share * len(above)


def _is_chinese(data: bytes, encoding: str) -> bool:
    """Whether the bytes read as Chinese. Western text also decodes, but pairs a high byte with a low one."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return False
    pairs = len(text) - len(text.encode("ascii", "ignore"))
    high_bytes = sum(map((0x80).__le__, data))
    return pairs > 0 and high_bytes >= 1.7 * pairs


def _is_big5(data: bytes) -> bool:
    """Whether the bytes read as Big5, mostly in its common characters: pairs that begin with 0xa1 to 0xc6."""
    try:
        text = data.decode("big5")
    except UnicodeDecodeError:
        return False
    above = [char.encode("big5") for char in text if char > "\x7f"]
    common = sum(BIG5_COMMON[0] <= pair[0] <= BIG5_COMMON[1] for pair in above)
    return len(above) >= SCRIPT_CHARACTERS and common >= BIG5_SHARE * len(above)


def _is_western(data: bytes) -> bool:
    """Whether the bytes read as Windows-1252 with letters, not symbols, above ASCII."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    above = [char for char in text if char > "\x7f"]
    return bool(above) and sum(
        (char.isalpha() and char not in NO_LETTERS) or char in "’‘“”–—…€" for char in above
    ) >= 0.7 * len(above)
