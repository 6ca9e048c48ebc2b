"""What the doctor gathers beyond the probe, behind sources of our own; and the tables that it reads."""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from support.doctor_contexts import machine, with_card

from qlora_profiles.plan import Given, Request
from qlora_run.doctor import environment, network, requirements
from qlora_run.doctor.cuda_architectures import has_code_for
from qlora_run.doctor.environment import (
    EnvironmentSources,
    gather,
    nearest,
    symlink_problem,
    torch_folders,
    write_problem,
)
from qlora_run.doctor.known_bad import BadPair, MachineVersions, known_bad, table
from qlora_run.doctor.needs import PROCESS_BYTES, needs_of
from qlora_run.planner.make_plan import PlanInput, make_plan


class Registry:
    """The one value of Windows' registry that is read."""

    HKEY_LOCAL_MACHINE = "HKLM"

    def __init__(self, value: int | None) -> None:
        self.value = value

    def OpenKey(self, root: str, path: str) -> "Registry":
        assert (root, path) == ("HKLM", r"SYSTEM\CurrentControlSet\Control\FileSystem")
        return self

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def QueryValueEx(self, key: "Registry", name: str) -> tuple[int, int]:
        assert name == "LongPathsEnabled"
        if key.value is None:
            raise FileNotFoundError(name)
        return key.value, 4


def windows(tmp_path: Path, value: int | None = 1, **sources: Any) -> environment.Environment:
    def loaded() -> Any:
        return Registry(value)

    return gather(
        EnvironmentSources(env={"HF_HOME": str(tmp_path)}, windows=True, winreg=loaded, **sources),
        tmp_path,
        None,
        False,
    )


def test_this_machine_can_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    here = environment.read_environment(tmp_path / "runs" / "deep", ask_hub=False)
    assert here.looked
    assert (here.bits, here.hub) == (64, None)
    assert here.cache_problem == here.output_problem == ""
    assert here.clock_behind_seconds == 0
    assert here.longest_path == len(str(tmp_path / "runs" / "deep"))
    assert list(tmp_path.iterdir()) == []
    if sys.platform != "win32":
        assert here.long_paths is None
        assert here.commit_free_bytes is None


@pytest.mark.parametrize(("value", "allowed"), [(1, True), (0, False), (None, None)])
def test_long_paths_by_the_registry(value: int | None, allowed: bool | None, tmp_path: Path) -> None:
    assert windows(tmp_path, value).long_paths is allowed


def test_links_that_are_refused(tmp_path: Path) -> None:
    def refuse(target: str, link: str) -> None:
        error = OSError(22, "A required privilege is not held by the client")
        error.winerror = 1314  # type: ignore[attr-defined]
        raise error

    def unknown(target: str, link: str) -> None:
        raise NotImplementedError("no links here")

    refusals: list[tuple[Callable[[str, str], None], str]] = [(refuse, "WinError 1314"), (unknown, "no links here")]
    for symlink, words in refusals:
        assert symlink_problem(tmp_path, symlink) == words
    assert windows(tmp_path, symlink=refuse).symlink_problem == "WinError 1314"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="links need developer mode there")
def test_links_that_can_be_made(tmp_path: Path) -> None:
    assert symlink_problem(tmp_path / "not" / "there", os.symlink) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_problem(tmp_path / "later") == ""

    def full(*args: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert write_problem(tmp_path / "later") == f"{tmp_path}: Permission denied"


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="folders are closed by other means there")
def test_a_folder_below_one_that_may_not_be_looked_into(tmp_path: Path) -> None:
    (tmp_path / "closed" / "hub").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o000)
    everything = os.geteuid() == 0
    if everything:  # root may do anything, so for a moment this is somebody else
        os.seteuid(65534)
    try:
        assert write_problem(tmp_path / "closed" / "hub").endswith(": Permission denied")
    finally:
        if everything:
            os.seteuid(0)
        (tmp_path / "closed").chmod(0o700)


def test_the_first_torch_on_the_path_hides_the_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name / "torch").mkdir(parents=True)
    for name in ("b", "c"):
        (tmp_path / name / "torch" / "version.py").write_text("cuda = None", encoding="utf-8")
    path = [str(tmp_path / name) for name in ("a", "c", "b", "c", "none")]
    assert torch_folders(path) == (path[1], path[2])


def test_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert nearest(tmp_path / "a" / "b") == tmp_path
    assert nearest(tmp_path / "file" / "b") == tmp_path / "file"
    assert write_problem(tmp_path / "file" / "b") == f"{tmp_path / 'file'}: a file, not a folder"
    assert nearest(Path("/no/such/place")).exists()


def test_a_machine_without_a_home_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(env: Any) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(environment, "hub_cache", homeless)
    here = gather(EnvironmentSources(env={}), tmp_path, None, False)
    assert "no home folder" in str(here.cache_problem)


def test_a_clock_that_is_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 100 * 86400)
    behind = windows(tmp_path).clock_behind_seconds
    assert behind is not None
    assert 60 * 86400 < behind < 100 * 86400


def test_what_cannot_be_imported_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> network.Hub:
        raise ModuleNotFoundError("No module named 'huggingface_hub'")

    monkeypatch.setattr(environment, "look", missing)
    assert gather(EnvironmentSources(env={}), tmp_path, tmp_path, True).hub is None


# --- requirements


def asking_for(monkeypatch: pytest.MonkeyPatch, *asked: str, **installed: str) -> tuple[str, ...]:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "requires", lambda name: list(asked))
    monkeypatch.setattr(metadata, "version", version)
    return requirements.unmet("it")


def test_requirements_that_are_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asking_for(
        monkeypatch,
        "torch>=2.11",
        "peft>=0.21",
        "trl<=1.15.0",
        "liger-kernel>=0.8; extra == 'liger'",
        "triton>=3; sys_platform == 'nowhere'",
        torch="2.13.0+cu130",
        trl="1.16.0",
    )
    assert found == ("peft>=0.21 (not installed)", "trl<=1.15.0 (1.16.0 is installed)")


def test_a_build_and_a_pre_release_are_no_reason_against_a_version() -> None:
    assert requirements.allows(SpecifierSet("<=2.13.0"), "2.13.0+cu130")
    assert requirements.allows(SpecifierSet(">=2.13"), "2.14.0rc1")
    assert not requirements.allows(SpecifierSet("<2.13"), "2.13.0")
    assert requirements.allows(SpecifierSet("<2.13"), "built-from-source")


def test_what_is_not_installed_asks_for_nothing() -> None:
    assert requirements.unmet("no-such-package-of-ours") == ()


def test_this_environment_has_what_the_program_asks_for() -> None:
    assert requirements.unmet("qlora-run") == ()


# --- the table of bad pairs


def test_every_entry_of_the_table_can_be_read_and_has_a_remedy() -> None:
    assert len(table()) >= 6
    for pair in table():
        assert pair.when
        assert pair.what
        assert pair.consequence
        mend = pair.fix_with
        assert bool(mend.install) != bool(mend.torch_backend)
        for wanted in pair.when.values():
            SpecifierSet(wanted)


@pytest.mark.parametrize(
    ("when", "system", "bad"),
    [
        ({"torch": ">=2.13"}, None, True),
        ({"torch": "<2.13"}, None, False),
        ({"cuda": ">=13", "capability": "<8.0"}, None, False),
        ({"cuda": ">=13", "capability": ">=8.6"}, None, True),
        ({"driver": "<600"}, None, True),
        ({"python": ">=3"}, None, True),
        ({"no-such-package": ">0"}, None, False),
        ({"torch": ">=2.13"}, "windows", False),
        ({"torch": ">=2.13"}, "linux", True),
    ],
)
def test_a_pair_holds_where_everything_under_when_does(when: dict[str, str], system: Any, bad: bool) -> None:
    mend = table()[0].fix_with
    pair = BadPair(when=when, what="x", consequence="y", verdict="warn", fix_with=mend, system=system)
    assert bool(list(known_bad(MachineVersions.of(machine()), [pair]))) is bad


def test_wsl_is_a_system_of_its_own() -> None:
    assert MachineVersions.of(machine("wsl-16gb")).system == "wsl"
    assert MachineVersions.of(machine("windows-12gb")).system == "windows"


def test_any_of_several_cards_counts() -> None:
    old = with_card("linux-2x24gb", capability=(7, 0))
    assert [known.pair.verdict for known in known_bad(MachineVersions.of(old))] == ["fail"]


# --- what torch has code for


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 6), ["sm_80", "sm_90"], True),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_90", "compute_90a"], True),
        ((7, 5), ["sm_80", "compute_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((8, 6), ["gfx1100", "sm_"], False),
    ],
)
def test_whether_torch_has_code_for_the_card(capability: tuple[int, int], architectures: list[str], runs: bool) -> None:
    assert has_code_for(capability, architectures) is runs


# --- what a model takes


def needs(model: str, **given: Any) -> Any:
    given = {"model": Given(value=model, source="cli")} | {k: Given(value=v, source="cli") for k, v in given.items()}
    report = machine("linux-24gb")
    return needs_of(make_plan(PlanInput(request=Request(given=given), report=report, only_planning=True)))


def test_what_a_model_takes_grows_with_it() -> None:
    small, large = needs("Qwen/Qwen3-0.6B"), needs("Qwen/Qwen3-8B")
    for name in ("download_bytes", "written_bytes", "load_bytes", "commit_bytes", "merge_bytes"):
        assert getattr(small, name) < getattr(large, name), name
    assert large.download_bytes == pytest.approx(16.4e9, rel=0.05)
    assert large.commit_bytes == PROCESS_BYTES + large.download_bytes
    assert needs("Qwen/Qwen3-8B", merge=True).written_bytes - large.written_bytes == pytest.approx(16.4e9, rel=0.05)
