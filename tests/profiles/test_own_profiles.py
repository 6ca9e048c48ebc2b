"""A person's own profiles: stored in the settings folder, extending others, beside those that are shipped."""

import os
import sys
from pathlib import Path

import pytest

from qlora_profiles.catalogue import load_profile, nearest_profile, profile_names, save_profile
from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.machines import load_machine
from qlora_profiles.own_files import own_folder, own_names
from qlora_profiles.places import config_folder
from qlora_profiles.plan import MachineClass, Profile


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A settings folder with a space and Chinese letters in its name."""
    own = tmp_path / "my 设置"
    monkeypatch.setenv("QLORA_RUN_CONFIG", str(own))
    return own / "profiles"


def write(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


MINE = Profile(
    name="mine",
    about="for the 写作 model",
    machine=MachineClass(system="windows", vram_gib=12),
    settings={"model": "Qwen/Qwen3-4B", "lora_r": 64, "target_modules": ("q_proj", "v_proj"), "double_quant": False},
)


def test_what_is_saved_is_read_back(folder: Path) -> None:
    assert own_names("profile") == ()
    path = save_profile(MINE)
    assert path == folder / "mine.yaml"
    assert own_names("profile") == ("mine",)
    assert load_profile("mine") == MINE
    assert [file.name for file in folder.iterdir()] == ["mine.yaml"]


def test_nothing_is_replaced_unless_asked() -> None:
    save_profile(MINE)
    with pytest.raises(UserError, match="there is one already") as caught:
        save_profile(MINE)
    assert "--yes" in str(caught.value.fix)
    other = Profile(name="mine", about="new", machine=MINE.machine)
    save_profile(other, replace=True)
    assert load_profile("mine") == other


def test_a_shipped_name_is_not_taken(folder: Path) -> None:
    with pytest.raises(UserError, match="comes with the program"):
        save_profile(Profile(name="linux-12gb", about="", machine=MINE.machine), replace=True)
    write(folder, "linux-12gb", "about: mine\nmachine: {}\nsettings: {lora_r: 1}\n")
    assert "lora_r" not in load_profile("linux-12gb").settings


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b", "C:x", "写", "x.", ".x", "con fig"])
def test_a_name_is_a_files_name_everywhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        save_profile(Profile(name=name, about="", machine=MINE.machine))
    assert not list(tmp_path.rglob("*.yaml"))


def test_a_profile_extends_another(folder: Path) -> None:
    write(folder, "longer", "extends: windows-12gb\nsettings: {max_length: 4096, workers: 2}\n")
    base, longer = load_profile("windows-12gb"), load_profile("longer")
    assert longer.settings == base.settings | {"max_length": 4096, "workers": 2}
    assert longer.machine == base.machine
    assert longer.about == "as windows-12gb, with 2 settings of its own"
    write(
        folder, "longest", "extends: longer\nabout: even longer\nmachine: {cpu: true}\nsettings: {max_length: null}\n"
    )
    longest = load_profile("longest")
    assert longest.settings["max_length"] is None
    assert longest.settings["workers"] == 2
    assert (longest.about, longest.machine) == ("even longer", MachineClass(cpu=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: mine\n", "extends itself \\(mine -> mine\\)"),
        ("extends: other\n", "extends itself \\(mine -> other -> mine\\)"),
        ("extends: windows-13gb\n", "unknown profile windows-13gb; did you mean windows-1"),
        ("extends: cpu\nsetings: {}\n", "profile mine: unknown key setings; did you mean settings"),
        ("extends: cpu\nsettings: {lora_rank: 3}\n", "profile mine: unknown setting lora_rank"),
        ("extends: 3\n", "profile mine: "),
        ("about: x\n", "profile mine: "),
        ("a: b: c\n", "profile mine: not YAML"),
    ],
)
def test_a_mistake_is_one_line(text: str, words: str, folder: Path) -> None:
    write(folder, "mine", text)
    write(folder, "other", "extends: mine\n")
    with pytest.raises(UserError, match=words) as caught:
        load_profile("mine")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_a_users_error(folder: Path) -> None:
    write(folder, "mine", "")
    (folder / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_profile("mine")


def test_ones_own_are_named_where_one_is_not_found() -> None:
    save_profile(MINE)
    with pytest.raises(UserError, match="unknown profile mina; did you mean mine") as caught:
        load_profile("mina")
    assert str(caught.value.fix).endswith("windows-24gb, mine")


def test_ones_own_are_no_machines_nearest_profile() -> None:
    save_profile(MINE)
    assert "mine" not in profile_names()
    assert nearest_profile(load_machine("windows-12gb")) == "windows-12gb"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="rights work otherwise here")
def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    with pytest.raises(EnvironmentProblem, match=r"mine\.yaml"):
        save_profile(MINE)


def test_a_file_in_the_way_of_the_folder(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("x", encoding="utf-8")
    assert own_names("profile") == ()
    with pytest.raises(EnvironmentProblem, match=r"mine\.yaml"):
        save_profile(MINE)


def test_where_they_lie_without_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_folder("profile") == config_folder("profiles")
    monkeypatch.delenv("QLORA_RUN_CONFIG")
    assert "qlora-run" in str(config_folder("profiles"))
