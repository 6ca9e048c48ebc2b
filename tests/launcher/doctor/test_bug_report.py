"""The file for a bug report says everything of the machine and nothing of the person."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.command_line import process
from support.doctor_contexts import broke, context, machine, with_card

from qlora_profiles.hardware import GpuProcess
from qlora_profiles.units import GIB
from qlora_run.doctor.bug_report import Private, bug_report, private
from qlora_run.doctor.examination import examination_of

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWx"
PERSON = private(
    {
        "HOME": "/home/wang.xiaoming",
        "USERPROFILE": "C:\\Users\\Wang Xiaoming",
        "USERNAME": "Wang Xiaoming",
        "MY_API_KEY": "s3cr3t-value-of-mine",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PIP_NO_KEYRING": "1",
    },
    hosts=("DESKTOP-7Q2.lan",),
    users=("xiaoming",),
)
GIVEAWAYS = ("xiaoming", "DESKTOP-7Q2", TOKEN, "s3cr3t-value-of-mine", "hunter2")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/home/wang.xiaoming/.cache/hub: denied", "~/.cache/hub: denied"),
        (r"C:\Users\Wang Xiaoming\.cache\hub", r"~\.cache\hub"),
        (r"'C:\\Users\\Wang Xiaoming\\x'", r"'~\\x'"),
        ("c:/users/wang xiaoming/x", "~/x"),
        ("/home/somebody/x", "/home/(name)/x"),
        (r"D:\Users\else\x", r"D:\Users\(name)\x"),
        ("owner Wang Xiaoming", "owner (name)"),
        ("xiaoming@desktop-7q2:", "(name)@(name):"),
        (f"Bearer {TOKEN}", "Bearer (secret)"),
        ("key=s3cr3t-value-of-mine", "key=(secret)"),
        ("https://me:hunter2@mirror/x", "https://(secret)@mirror/x"),
        ("torch 2.13.0 on 1 card", "torch 2.13.0 on 1 card"),
    ],
)
def test_what_is_private_is_hidden(text: str, clean: str) -> None:
    assert PERSON.hide(text) == clean


def test_names_that_say_nothing_of_anybody_stay() -> None:
    plain = private({"HOME": "/root", "USER": "root"}, hosts=("localhost",), users=("root",))
    assert plain.names == ()
    assert plain.hide("the root of it: /root/x") == "the root of it: ~/x"


def told(hidden: Private = PERSON) -> tuple[dict[str, Any], str]:
    ill = context(
        with_card(processes=(GpuProcess(pid=4121, name="secret-game.exe", vram_bytes=GIB),), uuid="GPU-1234"),
        broke("nf4", f"OSError: /home/wang.xiaoming/lib/bnb.so on DESKTOP-7Q2 with {TOKEN}"),
        cache_problem=r"C:\Users\Wang Xiaoming\.cache: denied, s3cr3t-value-of-mine",
    )
    looked = examination_of(ill)
    value = bug_report(looked.context, looked.diagnosis, hidden)
    return value, json.dumps(value, ensure_ascii=False)


def test_nothing_private_is_in_the_report() -> None:
    value, text = told()
    assert not [
        word for word in (*GIVEAWAYS, "secret-game", "GPU-1234", "/home/", "Users") if word.lower() in text.lower()
    ]
    by_id = {check["id"]: check for check in value["checks"]}
    assert by_id["4-bit"]["seen"] == "a 4-bit product: OSError: ~/lib/bnb.so on (name) with (secret)"
    assert value["machine"]["gpus"][0]["name"] == "NVIDIA GeForce RTX 3060"
    assert value["trials"]["nf4"]["state"] == "fail"
    assert value["exit_code"] == 3


def test_without_hiding_all_of_it_would_be_there() -> None:
    """The giveaways really were planted where the report reads."""
    _, text = told(Private())
    assert all(word.lower() in text.lower() for word in ("xiaoming", "DESKTOP-7Q2", "s3cr3t-value-of-mine"))


def test_the_plan_is_told_without_paths_to_the_data() -> None:
    looked = examination_of(context(machine()))
    value = bug_report(looked.context, looked.diagnosis, PERSON)
    assert value["plan"]["attention"]["value"] == "varlen"
    assert bug_report(replace(looked.context, plan=None), looked.diagnosis, PERSON)["plan"] is None


def test_the_command_writes_a_clean_file(tmp_path: Path) -> None:
    """As a person calls it: with a home, a user name and a token planted in the environment."""
    home = tmp_path / "zhangsan"
    home.mkdir()
    planted = {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "USER": "zhangsan",
        "USERNAME": "zhangsan",
        "LOGNAME": "zhangsan",
        "HF_TOKEN": TOKEN,
        "WANDB_API_KEY": "0123456789abcdef",
        "QLORA_RUN_CACHE": str(home / "cache"),
        "HF_HOME": str(home / "hub"),
    }
    done = process("doctor", "--quick", "--report", "bug.json", "--json", cwd=home, env=planted)
    assert done.returncode == 1, done.stderr
    assert b"bug.json: written" in done.stderr
    text = (home / "bug.json").read_text(encoding="utf-8")
    assert not [word for word in ("zhangsan", TOKEN, "0123456789abcdef") if word in text]
    assert json.loads(text)["machine"]["platform"]["system"]
    assert json.loads(done.stdout)["exit_code"] == 1
