"""Models on the hub: a small hub of our own on this machine stands in for it; nothing leaves the machine."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.planning_facts import write_checkpoint

from qlora_profiles.errors import UserError
from qlora_run.model_facts import hub, read_model_facts
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.model_facts.safetensors_header import TensorInfo

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}
ERRORS = {"gated": (403, "GatedRepo"), "none": (404, "RepoNotFound"), "broken": (500, "")}


class Hub(BaseHTTPRequestHandler):
    """Serves OWNER/NAME/resolve/REVISION/FILE from a folder, with ranges; some names answer with an error."""

    root: Path
    released = threading.Event()

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        if self.path.startswith("/api/"):
            return self._send(404, "", b"", with_body)
        _, owner, name, *rest = self.path.split("?")[0].split("/")
        if name == "slow":
            self.released.wait(10)
        file = self.root / owner / name / "/".join(rest[2:])
        if name in ERRORS:
            return self._send(*ERRORS[name], b"", with_body)
        if rest[1] != "main":
            return self._send(404, "RevisionNotFound", b"", with_body)
        if not file.is_file():
            return self._send(404, "EntryNotFound", b"", with_body)
        return self._send(200, "", self._part(file.read_bytes()), with_body)

    def _part(self, body: bytes) -> bytes:
        wanted = self.headers.get("range", "").removeprefix("bytes=")
        if not wanted:
            return body
        first, last = wanted.split("-")
        return body[int(first) : int(last) + 1]

    def _send(self, status: int, code: str, body: bytes, with_body: bool) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def reach(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let huggingface_hub talk to ``address``, as HF_ENDPOINT does from the start of a process."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that our hub serves, with an empty cache."""
    import huggingface_hub.constants as constants

    class OwnHub(Hub):
        root = tmp_path / "hub"
        released = threading.Event()

    server = ThreadingHTTPServer(("127.0.0.1", 0), OwnHub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    reach(monkeypatch, address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield tmp_path / "hub"
    OwnHub.released.set()
    server.shutdown()
    server.server_close()


def error_of(model: str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        read_model_facts(model, **options)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("shards", [1, 2])
def test_headers_come_over_the_network_without_the_weights(hub_root: Path, shards: int) -> None:
    tensors = tensors_from_config(CONFIG, "x")
    local = write_checkpoint(hub_root / "org" / "tiny", CONFIG, tensors, shards=shards)
    facts = read_model_facts("org/tiny", cache=hub_root.parent / "cache")
    assert facts.exact
    assert facts.source == "org/tiny"
    on_disk = read_model_facts(str(local))
    assert facts.fingerprint == on_disk.fingerprint
    assert facts.linears == on_disk.linears
    assert facts.file_bytes == 2 * facts.params


def test_the_cache_and_local_dir_come_before_the_network(hub_root: Path, tmp_path: Path) -> None:
    tensors = tensors_from_config(CONFIG, "x")
    stored = write_checkpoint(tmp_path / "stored", CONFIG, tensors)
    assert read_model_facts("org/none", local_dir=stored).source == "org/none"
    snapshot = tmp_path / "cache" / "models--org--none" / "snapshots" / ("1" * 40)
    write_checkpoint(snapshot, CONFIG, tensors)
    refs = tmp_path / "cache" / "models--org--none" / "refs"
    refs.mkdir()
    (refs / "main").write_text("1" * 40, encoding="utf-8")
    assert read_model_facts("org/none", cache=tmp_path / "cache").exact
    (snapshot / "tokenizer.json").unlink()  # a download that was cut short: the hub is asked again
    assert "neither on this disk nor on the hub" in error_of("org/none", cache=tmp_path / "cache").message


def test_what_the_hub_refuses_is_said_in_one_line(hub_root: Path) -> None:
    write_checkpoint(hub_root / "org" / "tiny", CONFIG, tensors_from_config(CONFIG, "x"))
    (hub_root / "org" / "only-config").mkdir()
    (hub_root / "org" / "only-config" / "config.json").write_text("{}", encoding="utf-8")
    (hub_root / "org" / "garbage").mkdir()
    (hub_root / "org" / "garbage" / "config.json").write_text("<html>", encoding="utf-8")
    (hub_root / "org" / "empty").mkdir()
    gated = error_of("org/gated")
    assert "gated" in gated.message
    assert "hf auth login" in str(gated.fix)
    assert "neither on this disk nor on the hub" in error_of("org/none").message
    assert "has no revision v9" in error_of("org/tiny", revision="v9").message
    assert "no safetensors weights" in error_of("org/only-config").message
    assert "no config.json" in error_of("org/empty").message
    assert "the hub answered" in error_of("org/garbage").message
    assert "the hub answered" in error_of("org/broken").message


def test_a_hub_that_does_not_answer_is_given_up_soon(hub_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "GIVE_UP_SECONDS", 0.3)
    error = error_of("org/slow")
    assert "not on this disk, hub unreachable (gave up after" in error.message
    assert error.fix == "a local folder, HF_ENDPOINT=<mirror>, or: qlora-run demo"


def test_no_hub_at_all(hub_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reach(monkeypatch, "http://127.0.0.1:9")
    assert error_of("org/tiny").message.endswith("not on this disk, hub unreachable")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in error_of("org/tiny").message


def test_a_known_model_is_planned_for_without_a_network(hub_root: Path) -> None:
    facts = read_model_facts("qwen/qwen3-8b", allow_known=True)
    assert not facts.exact
    assert facts.num_layers == 36
    with pytest.raises(UserError):
        read_model_facts("Qwen/Qwen3-8B")


def test_headers_of_another_kind_are_told_apart(hub_root: Path) -> None:
    write_checkpoint(hub_root / "org" / "picture", CONFIG, {"conv.weight": TensorInfo("F32", (4, 4))})
    assert "not a language model" in error_of("org/picture").message
