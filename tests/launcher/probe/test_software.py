import sys
from pathlib import Path

import pytest

from qlora_run.probe.notes import Notes
from qlora_run.probe.software import (
    PACKAGES,
    Build,
    build_from_values,
    build_from_version,
    packages,
    parse_version_file,
    torch,
)
from qlora_run.probe.sources import Sources

VERSION_FILE = """from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip']
__version__ = '2.13.0+weird'
debug = False
cuda: Optional[str] = {cuda}
git_version = 'cf30153c'
hip: Optional[str] = {hip}
xpu: Optional[str] = {xpu}
"""


def version_file(cuda: str | None = None, hip: str | None = None, xpu: str | None = None) -> str:
    return VERSION_FILE.format(cuda=repr(cuda), hip=repr(hip), xpu=repr(xpu))


@pytest.fixture
def only_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An otherwise empty import path with a torch folder that must not be run."""
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('torch was imported')\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return folder


def install(site: Path, name: str, version: str | None) -> None:
    info = site / f"{name.replace('-', '_')}-{version or '0'}.dist-info"
    info.mkdir()
    line = f"Version: {version}\n" if version else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n{line}", encoding="utf-8")


@pytest.mark.parametrize(
    ("version", "build"),
    [
        ("2.13.0+cpu", Build("cpu")),
        ("2.13.0+cu130", Build("cuda", "13.0")),
        ("2.6.0+cu118", Build("cuda", "11.8")),
        ("2.5.1+cu121.with.pypi.cudnn", Build("cuda", "12.1")),
        ("2.13.0+rocm6.4", Build("rocm")),
        ("2.13.0+xpu", Build("xpu")),
        ("2.13.0", None),
        ("2.9.0a0+50eac811a6.nv25.09", None),
        ("2.9.0a0+gitcu13", None),
    ],
)
def test_build_from_version(version: str, build: Build | None) -> None:
    assert build_from_version(version) == build


@pytest.mark.parametrize(
    ("text", "on_apple", "build"),
    [
        (version_file(cuda="12.8"), False, Build("cuda", "12.8")),
        (version_file(hip="6.4.43482"), False, Build("rocm")),
        (version_file(xpu="20250301"), False, Build("xpu")),
        (version_file(), False, Build("cpu")),
        (version_file(), True, Build("mps")),
    ],
)
def test_build_from_version_file(text: str, on_apple: bool, build: Build) -> None:
    assert build_from_values(parse_version_file(text), on_apple) == build


def test_parse_version_file_keeps_constants_only() -> None:
    values = parse_version_file("import os\na = 'x'\nb: str = 'y'\nc = os.sep\nd = 3\ne.f = 'z'\ng = None\n")
    assert values == {"a": "x", "b": "y", "g": None}


def test_torch_is_read_without_running_it(only_torch: Path) -> None:
    (only_torch / "version.py").write_text(version_file(cuda="13.0"), encoding="utf-8")
    found = torch(Sources(), Notes(), "2.13.0")
    assert (found.version, found.build, found.cuda) == ("2.13.0", "cuda", "13.0")
    assert "torch" not in sys.modules


def test_a_torch_without_metadata_tells_its_version_itself(only_torch: Path) -> None:
    (only_torch / "version.py").write_text(version_file(), encoding="utf-8")
    found = torch(Sources(system="linux"), Notes(), None)
    assert (found.version, found.build, found.cuda) == ("2.13.0+weird", "cpu", None)


def test_a_plain_build_on_apple_silicon(only_torch: Path) -> None:
    (only_torch / "version.py").write_text(version_file(), encoding="utf-8")
    mac = Sources(system="macos", machine=lambda env: "arm64")
    assert torch(mac, Notes(), "2.13.0").build == "mps"


@pytest.mark.parametrize("content", [None, "cuda = = 1\n"])
def test_a_damaged_torch_is_unknown_with_the_reason(only_torch: Path, content: str | None) -> None:
    if content:
        (only_torch / "version.py").write_text(content, encoding="utf-8")
    notes = Notes()
    found = torch(Sources(), notes, "2.13.0")
    assert (found.version, found.build) == ("2.13.0", None)
    assert set(notes.reasons) == {"torch.build", "torch.cuda"}


def test_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    notes = Notes()
    assert torch(Sources(), notes, None).version is None
    assert notes.reasons == dict.fromkeys(("torch.version", "torch.build", "torch.cuda"), "torch is not installed")


def test_packages_lists_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    install(tmp_path, "flash-attn", "2.8.3")
    install(tmp_path, "unsloth_zoo", "2026.10.9")
    install(tmp_path, "left-pad", "1.0")
    notes = Notes()
    assert packages(notes) == {"unsloth_zoo": "2026.10.9", "flash-attn": "2.8.3"}
    assert notes.reasons == {}


def test_a_package_without_a_version_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    install(tmp_path, "trl", None)
    install(tmp_path, "peft", "0.21.2")
    notes = Notes()
    assert packages(notes) == {"peft": "0.21.2"}
    assert set(notes.reasons) == {"packages.trl"}


def test_the_list_of_packages_has_no_duplicates() -> None:
    assert len(set(PACKAGES)) == len(PACKAGES)
