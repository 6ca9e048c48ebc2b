"""Files in other encodings: told apart, named, and read when named."""

import json
from collections.abc import Callable

import pytest

from qlora_core.data import DataSet
from qlora_core.data.sources.decode import guess_encoding
from qlora_profiles.errors import UserError

Read = Callable[..., DataSet]
CHINESE = "你好，请问今天天气怎么样？今天晴天。"
TAIWANESE = "請問今天的天氣如何？今天是晴天，氣溫二十度。"
JAPANESE = "こんにちは、今日の天気はどうですか。はれです。"
KOREAN = "안녕하세요 오늘 날씨가 어떻습니까 맑습니다"
FRENCH = "Ça va très bien, merci : le café est à côté."
# every letter with an accent stands before another one, so that the bytes decode as Chinese too
FRENCH_PAIRS = "Les élèves étudient"
EMOJI = "好的😀，谢谢"


def row(text: str) -> str:
    return json.dumps({"text": text}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("text", "codec", "told", "flag"),
    [
        (CHINESE, "gbk", "GBK", "gbk"),
        (EMOJI, "gb18030", "GB18030", "gb18030"),
        (CHINESE, "utf-16", "UTF-16", "utf-16"),
        (CHINESE, "utf-16-le", "UTF-16-LE", "utf-16-le"),
        (CHINESE, "utf-16-be", "UTF-16-BE", "utf-16-be"),
        (JAPANESE, "shift_jis", "Shift-JIS", "shift_jis"),
        (KOREAN, "euc_kr", "EUC_KR", "euc_kr"),
        (TAIWANESE, "big5", "Big5", "big5"),
        (FRENCH, "cp1252", "Windows-1252", "cp1252"),
        (FRENCH_PAIRS, "cp1252", "Windows-1252", "cp1252"),
    ],
)
def test_the_encoding_that_reads_it_is_named_and_works(read: Read, text: str, codec: str, told: str, flag: str) -> None:
    data = row(text).encode(codec)
    with pytest.raises(UserError) as caught:
        read("my.jsonl", data)
    assert str(caught.value) == f"my.jsonl  not UTF-8; reads cleanly as {told}  -> --encoding {flag}"
    assert read("my.jsonl", data, encoding=flag).conversations[0].text == text


@pytest.mark.parametrize("name", ["my.jsonl", "my.json"])
def test_a_byte_order_mark_is_taken_off(read: Read, name: str) -> None:
    assert read(name, row(CHINESE).encode("utf-8-sig")).conversations[0].text == CHINESE
    assert read(name, row(CHINESE).encode("utf-16"), encoding="utf-16").conversations[0].text == CHINESE


def test_gbk_csv(read: Read) -> None:
    data = read("my.csv", f"question,answer\n你好,{CHINESE}\n".encode("gbk"), encoding="GBK")
    assert data.conversations[0].messages[1].content == CHINESE


def test_bytes_that_no_encoding_explains(read: Read) -> None:
    with pytest.raises(UserError, match=r"my\.jsonl:2  not UTF-8 \(byte 0x81 has no meaning there\)"):
        read("my.jsonl", b'{"text": "a"}\n\x81\x8d\x8f\x90\x9d \x81 \xff')


def test_the_wrong_encoding_named_by_a_person(read: Read) -> None:
    with pytest.raises(UserError, match=r"my\.jsonl:2  not ascii \(byte 0xe4"):
        read("my.jsonl", b"{}\n" + row(CHINESE).encode(), encoding="ascii")
    with pytest.raises(UserError, match=r"--encoding gkb: no such encoding; did you mean gbk\?"):
        read("my.jsonl", b"{}", encoding="gkb")
    with pytest.raises(UserError, match="--encoding base64: not an encoding of text"):
        read("my.jsonl", b"{}", encoding="base64")


def test_plain_ascii_is_no_other_encoding() -> None:
    assert guess_encoding(b"plain") is None
