"""Machines for the doctor, each with the verdicts that it must get and the exit code."""

from collections.abc import Callable
from typing import Any

from qlora_profiles.hardware import Gpu, GpuProcess, HardwareReport, Memory, Torch
from qlora_profiles.units import GIB
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.network import Hub
from qlora_run.machine.selftest_results import Trial
from support.doctor_contexts import broke, context, machine, with_card

AMD = Gpu(name="Radeon RX 7900 XTX", vendor="amd", vram_total_bytes=24 * GIB)
ARC = Gpu(name="Arc B580", vendor="intel")
NO_CARD: dict[str, Any] = {"gpus": (), "cuda_driver": None}
CPU_TORCH = Torch(version="2.13.0+cpu", build="cpu")
UNSLOTH = {"unsloth": "2026.10.9", "unsloth_zoo": "2026.10.9", "triton": "3.7.0", "trl": "1.15.0"}
LIGER = {"liger-kernel": "0.8.5", "triton": "3.7.0"}
ROCM_OK = Trial(test="torch", state="ok", found={"device": "cuda", "hip": "7.0"})
ON_AMD = Trial(test="device", state="ok", found={"device": "cuda", "dtype": "bfloat16"})
SILENT = Hub(host="hub", state="silent", said="ConnectTimeout")
TWO = machine("linux-2x24gb")

Row = tuple[str, Callable[[], CheckContext], dict[str, str], int]


def amd(build: Any, **trials: Trial) -> HardwareReport:
    return machine("linux-24gb", gpus=(AMD,), torch=Torch(version=f"2.13.0+{build}", build=build), cuda_driver=None)


MACHINES: list[Row] = [
    # --- shipped machines as they are
    ("a healthy Linux card", lambda: context(machine()), {"gpu": "ok", "4-bit": "ok", "varlen": "ok"}, 0),
    ("an H100", lambda: context(machine("linux-80gb-h100")), {"architecture": "ok", "bf16": "ok"}, 0),
    ("a T4", lambda: context(machine("linux-16gb-t4")), {"bf16": "note", "gpu": "ok"}, 0),
    ("a Windows desktop", lambda: context(machine("windows-12gb")), {"spill": "note", "driver-model": "ok"}, 0),
    ("a small laptop", lambda: context(machine("laptop-6gb")), {"gpu": "ok", "display": "ok"}, 0),
    ("WSL", lambda: context(machine("wsl-16gb")), {"spill": "note", "wsl-memory": "note"}, 0),
    (
        "a roomy WSL",
        lambda: context(machine("wsl-16gb", memory={"ram_total_bytes": 64 * GIB})),
        {"wsl-memory": "ok"},
        0,
    ),
    ("two cards", lambda: context(TWO), {"several-cards": "note", "all-reduce": "ok"}, 0),
    ("no card", lambda: context(machine("cpu-only")), {"gpu": "warn", "vram": "skipped", "bf16": "skipped"}, 1),
    ("a Mac", lambda: context(machine("macos-m3")), {"gpu": "warn", "driver": "skipped"}, 1),
    ("a CPU build beside a card", lambda: context(machine("windows-cpu-torch")), {"torch": "fail"}, 3),
    # --- torch and the driver
    ("no torch", lambda: context(machine(torch=Torch(), packages={"torch": ""})), {"torch": "fail"}, 3),
    ("a driver of CUDA 12", lambda: context(machine(cuda_driver="12.4")), {"driver": "fail"}, 3),
    ("a driver of a newer CUDA", lambda: context(machine(cuda_driver="13.2")), {"driver": "ok"}, 0),
    ("a silent driver version", lambda: context(machine(cuda_driver=None)), {"driver": "note"}, 0),
    (
        "another torch than the one installed",
        lambda: context(machine(), Trial(test="torch", state="ok", found={"device": "cpu", "version": "2.13.0+cpu"})),
        {"torch": "fail"},
        3,
    ),
    (
        "torch refused by the driver",
        lambda: context(machine(), Trial(test="torch", state="ok", found={"refused": "driver too old"})),
        {"driver": "fail", "architecture": "skipped"},
        3,
    ),
    ("no code for the card", lambda: context(with_card(capability=(13, 0))), {"architecture": "fail"}, 3),
    ("torch that does not import", lambda: context(machine(), broke("torch")), {"torch-import": "fail"}, 3),
    (
        "a missing DLL",
        lambda: context(machine("windows-12gb"), broke("torch", "OSError: [WinError 126] DLL load failed")),
        {"torch-import": "fail"},
        3,
    ),
    ("a product that fails", lambda: context(machine(), broke("device")), {"device": "fail"}, 3),
    # --- versions
    ("a missing package", lambda: context(machine(packages={"peft": ""})), {"packages": "fail"}, 3),
    (
        "a package out of range",
        lambda: context(machine(), unmet=("peft>=0.21 (0.19 is installed)",)),
        {"packages": "fail"},
        3,
    ),
    ("CUDA 13 on Volta", lambda: context(with_card(capability=(7, 0))), {"known-bad": "fail", "gpu": "ok"}, 3),
    (
        "CUDA 12.6 on Blackwell",
        lambda: context(machine("blackwell-32gb", torch={"version": "2.13.0+cu126", "cuda": "12.6"})),
        {"known-bad": "fail"},
        3,
    ),
    ("an old transformers", lambda: context(machine(packages={"transformers": "4.57.0"})), {"known-bad": "fail"}, 3),
    ("a new transformers", lambda: context(machine(packages={"transformers": "5.23.0"})), {"known-bad": "warn"}, 1),
    ("an old bitsandbytes", lambda: context(machine(packages={"bitsandbytes": "0.45.0"})), {"known-bad": "fail"}, 3),
    (
        "an old torch",
        lambda: context(machine(torch={"version": "2.9.0+cu128", "cuda": "12.8"})),
        {"known-bad": "fail"},
        3,
    ),
    (
        "triton's name on Windows",
        lambda: context(machine("windows-12gb", packages={"triton": "3.1"})),
        {"known-bad": "warn"},
        1,
    ),
    (
        "Unsloth with a newer transformers",
        lambda: context(machine(packages=UNSLOTH | {"transformers": "5.18.0"})),
        {"unsloth-pins": "note"},
        0,
    ),
    (
        "Unsloth's pins",
        lambda: context(machine(packages=UNSLOTH), unsloth_unmet=("trl<=1.15.0 (1.16.0 is installed)",)),
        {"unsloth-pins": "warn"},
        1,
    ),
    ("Unsloth as it likes", lambda: context(machine(packages=UNSLOTH)), {"unsloth-pins": "ok", "unsloth": "ok"}, 0),
    # --- cards
    ("a Pascal card", lambda: context(with_card(capability=(6, 1))), {"gpu": "fail"}, 3),
    (
        "a card of 4 GiB",
        lambda: context(with_card(vram_total_bytes=4 * GIB, vram_free_bytes=4 * GIB)),
        {"gpu": "warn"},
        1,
    ),
    (
        "a browser on the card",
        lambda: context(with_card(processes=(GpuProcess(pid=4121, name="browser", vram_bytes=GIB),))),
        {"vram": "warn"},
        1,
    ),
    (
        "a card taken by the unseen",
        lambda: context(with_card("linux-24gb", vram_free_bytes=6 * GIB)),
        {"vram": "warn"},
        1,
    ),
    (
        "a card without free memory",
        lambda: context(with_card(vram_free_bytes=GIB // 8)),
        {"vram": "fail", "plan": "fail"},
        3,
    ),
    ("a desktop on the card", lambda: context(with_card(drives_display=True)), {"display": "note"}, 0),
    ("no desktop on the card", lambda: context(with_card(drives_display=False)), {"display": "ok"}, 0),
    (
        "TCC",
        lambda: context(with_card("windows-24gb-4090", driver_model="tcc")),
        {"spill": "skipped", "driver-model": "ok"},
        0,
    ),
    ("a driver before the spill", lambda: context(with_card("windows-12gb", driver="531.79")), {"spill": "ok"}, 0),
    (
        "a driver that does not answer",
        lambda: context(machine(**NO_CARD, torch=CPU_TORCH, unknown={"gpus": "RTX 3060 is there, but ..."})),
        {"gpu": "warn"},
        1,
    ),
    (
        "hidden cards",
        lambda: context(machine(**NO_CARD, torch=CPU_TORCH, cuda_visible_devices="-1")),
        {"visible": "note", "gpu": "warn"},
        1,
    ),
    (
        "cards in doubtful order",
        lambda: context(machine("linux-2x24gb", unknown={"gpus.index": "cards differ: CUDA may number ..."})),
        {"visible": "note"},
        0,
    ),
    ("an emulated bfloat16", lambda: context(with_card(capability=(7, 5))), {"bf16": "note"}, 0),
    # --- other makers
    ("ROCm that works", lambda: context(amd("rocm"), ROCM_OK, ON_AMD), {"gpu": "warn", "torch": "ok"}, 1),
    ("an AMD card and a CUDA build", lambda: context(amd("cpu")), {"gpu": "warn", "torch": "note"}, 1),
    ("ROCm that fails", lambda: context(amd("rocm"), ROCM_OK, broke("device")), {"gpu": "warn", "device": "fail"}, 3),
    (
        "an Arc card",
        lambda: context(machine(gpus=(ARC,), torch=Torch(version="2.13.0+xpu", build="xpu"), cuda_driver=None)),
        {"gpu": "warn", "torch": "ok"},
        1,
    ),
    # --- kernels
    ("4 bits that fail", lambda: context(machine(), broke("nf4")), {"4-bit": "fail"}, 3),
    ("4 bits that crash", lambda: context(machine(), broke("nf4", "signal 11", "crashed")), {"4-bit": "fail"}, 3),
    ("4 bits that hang", lambda: context(machine(), broke("nf4", "did not end", "hung")), {"4-bit": "fail"}, 3),
    ("4 bits that fail on a CPU", lambda: context(machine("cpu-only"), broke("nf4")), {"4-bit": "warn"}, 1),
    ("8 bits that fail", lambda: context(machine(), broke("int8")), {"8-bit": "warn", "4-bit": "ok"}, 1),
    ("an 8-bit optimizer that fails", lambda: context(machine(), broke("adam8bit")), {"8-bit-optimizer": "warn"}, 1),
    ("a fused optimizer that fails", lambda: context(machine(), broke("adamw")), {"fused-adamw": "warn"}, 1),
    ("packed attention that fails", lambda: context(machine(), broke("varlen")), {"varlen": "warn"}, 1),
    (
        "Triton without a compiler",
        lambda: context(machine(packages=LIGER), broke("triton", "RuntimeError: no C compiler")),
        {"triton": "warn", "liger": "ok"},
        1,
    ),
    ("graphs that cannot be captured", lambda: context(machine(), broke("graphs")), {"cuda-graphs": "warn"}, 1),
    (
        "our kernel that makes other weights",
        lambda: context(machine(packages=LIGER), broke("dequantize", "ArithmeticError: different weights")),
        {"dequantize-kernel": "warn", "triton": "ok"},
        1,
    ),
    (
        "our kernel that makes other losses",
        lambda: context(machine(packages=LIGER), broke("cross_entropy", "ArithmeticError: different losses")),
        {"loss-kernel": "warn", "dequantize-kernel": "ok", "triton": "ok"},
        1,
    ),
    ("no Triton for our kernel", lambda: context(machine("windows-12gb")), {"dequantize-kernel": "skipped"}, 0),
    ("Triton that works", lambda: context(machine(packages=LIGER)), {"triton": "ok", "liger": "ok"}, 0),
    ("no Triton", lambda: context(machine("windows-12gb")), {"triton": "skipped"}, 0),
    ("Liger that fails", lambda: context(machine(packages=LIGER), broke("liger")), {"liger": "warn"}, 1),
    ("Unsloth that fails", lambda: context(machine(packages=UNSLOTH), broke("unsloth")), {"unsloth": "warn"}, 1),
    ("workers that hang", lambda: context(machine(), broke("workers", "did not end", "hung")), {"workers": "warn"}, 1),
    ("cards that do not talk", lambda: context(TWO, broke("all_reduce")), {"all-reduce": "warn"}, 1),
    # --- memory
    (
        "little RAM",
        lambda: context(machine(memory={"ram_available_bytes": 4 * GIB})),
        {"ram": "warn"},
        1,
    ),
    ("RAM that is not told", lambda: context(machine(memory=Memory())), {"ram": "skipped"}, 0),
    (
        "a small container",
        lambda: context(machine(memory={"cgroup_limit_bytes": 5 * GIB})),
        {"container-memory": "warn"},
        1,
    ),
    (
        "a large container",
        lambda: context(machine(memory={"cgroup_limit_bytes": 64 * GIB})),
        {"container-memory": "ok"},
        0,
    ),
    (
        "a small WSL",
        lambda: context(machine("wsl-16gb", memory={"ram_total_bytes": 6 * GIB})),
        {"wsl-memory": "warn"},
        1,
    ),
    (
        "a WSL too small to merge",
        lambda: context(machine("wsl-16gb", memory={"ram_total_bytes": 12 * GIB})),
        {"wsl-memory": "note"},
        0,
    ),
    (
        "a small page file",
        lambda: context(machine("windows-12gb"), commit_free_bytes=9 * GIB),
        {"page-file": "warn"},
        1,
    ),
    ("a large page file", lambda: context(machine("windows-12gb"), commit_free_bytes=40 * GIB), {"page-file": "ok"}, 0),
    # --- disk and folders
    (
        "a full disk",
        lambda: context(machine(disk={"cache_free_bytes": 9 * GIB}), model="Qwen/Qwen3-8B"),
        {"cache-disk": "fail"},
        3,
    ),
    (
        "a nearly full disk",
        lambda: context(machine(disk={"cache_free_bytes": 18 * GIB}), model="Qwen/Qwen3-8B"),
        {"cache-disk": "warn"},
        1,
    ),
    (
        "a full disk for runs",
        lambda: context(machine(disk={"output_free_bytes": GIB // 8}), model="Qwen/Qwen3-8B"),
        {"plan": "fail", "output-disk": "warn"},
        3,
    ),
    (
        "a full disk for everything",
        lambda: context(machine(disk={"output_free_bytes": 0, "cache_free_bytes": 0})),
        {"plan": "fail", "output-disk": "warn", "cache-disk": "fail"},
        3,
    ),
    (
        "no room to merge",
        lambda: context(machine(disk={"output_free_bytes": 9 * GIB}), model="Qwen/Qwen3-8B"),
        {"output-disk": "note"},
        0,
    ),
    (
        "a cache that is read-only",
        lambda: context(machine(), cache_problem="Read-only file system"),
        {"cache-folder": "fail"},
        3,
    ),
    ("an output that is read-only", lambda: context(machine(), output_problem="denied"), {"output-folder": "fail"}, 3),
    (
        "no developer mode",
        lambda: context(machine("windows-12gb"), symlink_problem="WinError 1314"),
        {"symlinks": "note"},
        0,
    ),
    ("short paths", lambda: context(machine("windows-12gb"), long_paths=False), {"long-paths": "note"}, 0),
    (
        "short paths in a deep folder",
        lambda: context(machine("windows-12gb"), long_paths=False, longest_path=180),
        {"long-paths": "warn"},
        1,
    ),
    ("a model that fits nowhere", lambda: context(machine(), model="Qwen/Qwen3-32B"), {"plan": "fail"}, 3),
    # --- the hub
    ("a silent hub", lambda: context(machine(), hub=SILENT), {"network": "note"}, 0),
    ("no hub wished", lambda: context(machine(), hub=Hub(host="hub", state="offline")), {"network": "note"}, 0),
    ("a mirror", lambda: context(machine(), hub=Hub(host="m", state="answers", mirror=True)), {"network": "ok"}, 0),
    ("a gated model", lambda: context(machine(), model="meta-llama/Llama-3.2-1B-Instruct"), {"token": "warn"}, 1),
    (
        "a gated model with a token",
        lambda: context(machine(), model="meta-llama/Llama-3.2-1B-Instruct", token=True),
        {"token": "ok"},
        0,
    ),
    # --- the system
    ("Python 3.10", lambda: context(machine(platform={"python": "3.10.4"})), {"python": "fail"}, 3),
    ("32 bits", lambda: context(machine(), bits=32), {"python": "fail"}, 3),
    ("an Intel Mac", lambda: context(machine("macos-m3", platform={"machine": "x86_64"})), {"platform": "fail"}, 3),
    (
        "Windows on Arm",
        lambda: context(machine("windows-12gb", platform={"machine": "ARM64"})),
        {"platform": "warn"},
        1,
    ),
    ("a 32-bit processor", lambda: context(machine(platform={"machine": "armv7l"})), {"platform": "fail"}, 3),
    (
        "a GBK console",
        lambda: context(machine("windows-12gb", platform={"console_encoding": "gbk"})),
        {"console": "note"},
        0,
    ),
    ("a GBK locale", lambda: context(machine("windows-12gb"), text_encoding="cp936"), {"encoding": "note"}, 0),
    ("an ASCII locale", lambda: context(machine(), file_encoding="ascii"), {"encoding": "warn"}, 1),
    ("a clock that stood still", lambda: context(machine(), clock_behind_seconds=9e6), {"clock": "warn"}, 1),
]
