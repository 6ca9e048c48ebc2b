"""What is shown of data before training: screen, JSON and page; and data written as messages."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from support.command_line import contents, process, refused, said

import qlora_core.demo
from qlora_core.data import ChatTokenizer, ReadOptions, read_data
from qlora_core.data.lengths import length_sampling

Caught = pytest.CaptureFixture[str]
BASE = Path(qlora_core.demo.__file__).parent / "base"
DOCS = Path(__file__).parents[3] / "docs"
EVIL = "<script>alert('x')</script> & \"q\" \x1b[2J\u202e"
OWN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} says\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant says\n{% endif %}"
)
ROWS: list[dict[str, Any]] = [
    {"instruction": "你好，请问今天天气怎么样？", "output": "今天晴天，“适合”出门。🙂", "id": "1"},
    {"instruction": EVIL, "output": f"no {EVIL}", "id": "2"},
    {"instruction": "Say ok.", "output": "ok", "id": "3"},
    {"instruction": "Say ok.", "output": "ok", "id": "4"},
    {"instruction": "Count.", "output": " ".join(map(str, range(200))), "id": "5"},
    *({"instruction": f"Say {n}.", "output": f"The number is {n}.", "id": str(n)} for n in range(6, 16)),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def data(*more: str) -> list[str]:
    return ["data", "--model", str(BASE), "--data", "rows.jsonl", *more]


def found(capsys: Caught, *more: str) -> dict[str, Any]:
    parsed = json.loads(said(capsys, *data("--json", *more)))
    assert isinstance(parsed, dict)
    return parsed


def test_what_is_marked_as_learned_is_what_the_learned_tokens_say(capsys: Caught) -> None:
    report = found(capsys, "--rows", "15", "--max-length", "2000")
    chat = ChatTokenizer.from_folder(BASE)
    rows = read_data(ReadOptions(path="rows.jsonl")).conversations
    assert sorted(row["row"] for row in report["shown"]) == list(range(1, 16))
    for row in report["shown"]:
        example = chat.encode(rows[row["row"] - 1])
        ids = [number for number, learns in zip(example.input_ids, example.supervised, strict=True) if learns]
        learned = "".join(piece["text"] for piece in row["pieces"] if piece["kind"] == "learned")
        assert learned == chat.decode(ids, skip_special_tokens=False)
        assert learned == ROWS[row["row"] - 1]["output"] + "<|im_end|>"
        assert (row["learned"], row["length"]) == (len(ids), len(example.input_ids))


def test_the_counts_are_right(capsys: Caught) -> None:
    report = found(capsys, "--max-length", "100", "--val-size", "0.2")
    longest, shortest = (next(row for row in report["shown"] if why in row["why"]) for why in ("longest", "shortest"))
    assert (longest["row"], shortest["row"]) == (5, 3)
    assert (report["rows"], report["train_rows"], report["held_out_rows"]) == (15, 12, 3)
    assert report["duplicates"]["rows"] == 1
    assert report["answers"] == {
        "count": 15,
        "short": 2,
        "wordless": 0,
        "most_frequent_short": [{"text": "ok", "count": 2}],
    }
    assert (report["columns_used"], report["columns_not_used"]) == (["instruction", "output"], ["id"])
    cuts, lengths = report["cuts"], report["lengths"]
    assert (cuts["rows"], cuts["rows_dropped"]) == (1, 0)
    assert cuts["learned_lost"] == longest["length"] - 1 - 100  # the line break behind the end is not learned
    assert lengths["quantiles"][-1] == longest["length"]
    assert sum(one["rows"] for one in lengths["histogram"]) == 15
    assert report["stop_token"] == "<|im_end|>"


def test_every_key_stands_on_the_page_of_the_docs(capsys: Caught) -> None:
    page = (DOCS / "data.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page.split("## The keys")[1]))
    rows = Path("rows.jsonl")
    rows.write_text(rows.read_text(encoding="utf-8") + "{\n", encoding="utf-8")
    assert keys(found(capsys, "--skip-bad-rows")) == named


def keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in keys(inner)}
    return {key for inner in value for key in keys(inner)} if isinstance(value, list) else set()


@pytest.mark.parametrize("width", ["80", "60", "132"])
def test_the_screen_fits_and_marks_what_is_learned(width: str, capsys: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    text = said(capsys, *data("--max-length", "100", "--rows", "15"))
    screen, way_on = text.rstrip("\n").rsplit("\n", 1)
    assert max(map(cell_len, screen.split("\n"))) <= int(width)
    assert way_on == f"Next: qlora-run plan --model {BASE} --data rows.jsonl"
    assert "{+ok<|im_end|>+}" in screen
    assert re.search(r"\{\+0 1 2[\s\d]+\+\}\[-[\s\d.()a-z]+<\|im_end\|>-\]", screen)
    assert "\x1b" not in screen
    flat = " ".join(screen.split())
    assert "1 row equals an earlier one" in flat
    assert "not used id" in flat


def test_a_gbk_console_shows_it_in_80_columns(here: Path) -> None:
    done = process(*data("--rows", "2"), cwd=here, env={"PYTHONIOENCODING": "gbk", "COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode("gbk").splitlines()
    assert max(map(cell_len, lines[:-1])) <= 80
    text = "\n".join(lines)
    assert "{+今天晴天，“适合”出门。?<|im_end|>+}" in text
    assert re.search(r"^ +[\d, -]+  #+ \d+$", text, re.MULTILINE)


class Page(HTMLParser):
    """The tags of a page, and its text by the innermost class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.said: dict[str, list[str]] = {}
        self.links: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "onload", "onclick")]
        if tag != "meta":
            self.open.append((tag, found.get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        name = self.open[-1][1] if self.open else ""
        self.said.setdefault(name, []).append(data)


def test_the_page_is_whole_escaped_and_needs_nothing_else(here: Path, capsys: Caught) -> None:
    text = said(capsys, *data("--html", "page.html", "--rows", "15", "--max-length", "100"))
    assert text.endswith("Page: page.html\n")
    written = (here / "page.html").read_text(encoding="utf-8")
    page = Page(written)
    assert page.open == []
    assert page.links == []
    assert "script" not in page.tags
    assert [word for word in ("http:", "https:", "url(", "@import") if word in written] == []
    assert "prefers-color-scheme: dark" in written
    spelled = EVIL.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")
    learned = page.said["learned"]
    assert f"no {spelled}<|im_end|>" in learned
    assert "今天晴天，“适合”出门。🙂<|im_end|>" in learned
    assert len([one for one in learned if one.endswith("<|im_end|>")]) == 14
    assert [one.strip()[-13:] for one in page.said["cut"]] == ["199<|im_end|>"]
    assert any("你好，请问今天天气怎么样？" in one for one in page.said["given"])


def test_settings_of_the_data_count(here: Path, capsys: Caught) -> None:
    (here / "run.yaml").write_text("max_samples: 12\nsystem_prompt: Be brief.\n", encoding="utf-8")
    report = found(capsys, "--config", "run.yaml", "--ignore", "id", "--loss-on", "all", "--seed", "7")
    assert report["rows"] == 12
    given, learned = report["shown"][0]["pieces"]
    assert (given["kind"], learned["kind"]) == ("given", "learned")
    assert "Be brief." in learned["text"]
    assert report["learned_share"] > 0.9
    assert "left out on purpose" in " ".join(report["notes"])
    first, other, again = ([row["row"] for row in found(capsys, "--seed", seed)["shown"]] for seed in ("1", "2", "1"))
    assert first == again
    assert first[:3] == other[:3] == [1, 5, 3]
    assert first[3] != other[3]
    (here / "own.jinja").write_text(OWN_TEMPLATE, encoding="utf-8")
    assert "<|im_start|>assistant says\n  {+" in said(capsys, *data("--chat-template", "own.jinja", "--rows", "1"))


def test_many_rows_are_sampled_and_it_says_so(capsys: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length_sampling, "MOST_COUNTED_ROWS", 10)
    monkeypatch.setattr(length_sampling, "SAMPLE_ROWS", 5)
    report = found(capsys)
    assert 5 <= report["lengths"]["counted_rows"] < 15
    assert report["lengths"]["quantiles"][-1] == next(r["length"] for r in report["shown"] if "longest" in r["why"])
    assert f"counted in {report['lengths']['counted_rows']} rows" in " ".join(said(capsys, *data()).split())


def test_without_a_model_rows_are_messages(capsys: Caught) -> None:
    text = said(capsys, "data", "rows.jsonl", "--rows", "1")
    assert "[user] 你好，请问今天天气怎么样？\n" in text
    assert "[assistant] {+今天晴天，“适合”出门。🙂+}" in text
    assert "letters" in text
    assert "no --model" in text
    assert text.endswith("Next: qlora-run data --model MODEL --data rows.jsonl\n")


def test_a_hub_model_that_cannot_be_had_is_one_line(here: Path) -> None:
    env = {"HF_HOME": str(here / "hf")}
    for model in ("Qwen/Qwen3-0.6B", "nobody/nothing"):
        done = process("data", "--model", model, "--data", "rows.jsonl", cwd=here, env=env)
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.startswith(f"--model {model}  ".encode())
        assert len(done.stderr.splitlines()) <= 2


def test_bad_rows_are_refused_or_told(here: Path, capsys: Caught) -> None:
    (here / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n{\n', encoding="utf-8")
    assert "--skip-bad-rows sets 2 of 3 rows aside" in refused(capsys, "data", "--data", "bad.jsonl", block=True)
    text = said(capsys, "data", "--model", str(BASE), "--data", "bad.jsonl", "--skip-bad-rows")
    assert "; 2 set aside" in " ".join(text.split())
    assert re.search(r"^set aside   1 row of bad.jsonl \(line 3\): broken JSON", text, re.MULTILINE)


def test_rows_are_written_as_messages_and_never_over_a_file_in_silence(here: Path, capsys: Caught) -> None:
    table = here / "table.csv"
    table.write_text('question,answer\n"a, b","c\n\nd"\n你好,再见\n', encoding="utf-8")
    assert (
        said(capsys, "data", "--data", "table.csv", "--write", "out.jsonl") == "out.jsonl: 2 rows written as messages\n"
    )
    lines = (here / "out.jsonl").read_bytes().decode("utf-8").split("\n")
    assert json.loads(lines[1]) == {
        "messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "再见"}]
    }
    assert lines[2:] == [""]
    again, first = (read_data(ReadOptions(path=name)).conversations for name in ("out.jsonl", "table.csv"))
    assert [row.messages for row in again] == [row.messages for row in first]
    for name in ("out.jsonl", "table.csv", "out.csv", "no/out.jsonl", "."):
        refused(capsys, "data", "--data", "table.csv", "--write", name)
    assert "--overwrite" in refused(capsys, "data", "--data", "table.csv", "--write", "out.jsonl")
    same = ("data", "--data", "out.jsonl", "--write", "out.jsonl", "--overwrite")
    assert "that is the data itself" in refused(capsys, *same)
    said(capsys, "data", "--data", "rows.jsonl", "--write", "out.jsonl", "--overwrite")
    assert len(read_data(ReadOptions(path="out.jsonl")).conversations) == len(ROWS)
    assert set(contents(here)) == {"rows.jsonl", "table.csv", "out.jsonl"}


def test_a_page_never_replaces_a_file_in_silence(here: Path, capsys: Caught) -> None:
    (here / "page.html").write_text("mine", encoding="utf-8")
    assert "there is such a file already" in refused(capsys, *data("--html", "page.html"))
    said(capsys, *data("--html", "page.html", "--overwrite"))
    assert (here / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
