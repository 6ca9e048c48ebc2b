"""What was really computed in a child process: each self-test's result, and what training does without it."""

from qlora_run.doctor import remedies
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.checks.software import WITHOUT_4_BIT
from qlora_run.doctor.diagnosis import Fix
from qlora_run.doctor.findings import Finding, fail, ok, skipped, warn
from qlora_run.machine.selftest_results import Trial

WHERE = {"cuda": "this GPU", "xpu": "this GPU", "mps": "this GPU", "cpu": "the CPU"}
WINDOWS_LIBRARIES = "winget install Microsoft.VCRedist.2015+.x64"


def _ran(s: CheckContext, test: str, what: str) -> Finding | None:
    """That it worked, or was not tried; ``None`` where it is broken."""
    trial = s.tried(test)
    if trial.state in ("skipped", "unavailable"):
        return skipped(trial.said)
    if trial.state != "ok":
        return None
    where = WHERE.get(str(trial.found.get("device")), "")
    when = "when the doctor last tried" if s.remembered else f"in {trial.seconds:.1f} s"
    return ok(f"{what}{f' on {where}' if where else ''} {when}", str(trial.found or ""))


def _said(trial: Trial) -> str:
    """What went wrong, in the words of the verdict: ``fail: crashed with ...``."""
    return {"crashed": "crashed: ", "hung": "hangs: "}.get(trial.state, "") + trial.said


def _broken(s: CheckContext, test: str, what: str, consequence: str, fix: Fix, *, fatal: bool = False) -> Finding:
    trial = s.tried(test)
    return (fail if fatal else warn)(f"{what}: {_said(trial)}", consequence, fix, trial.said)


def torch_import(s: CheckContext) -> Finding:
    """torch imports, in a process of its own."""
    done = _ran(s, "torch", "imports")
    if done is not None:
        return done
    windows = remedies.command(WINDOWS_LIBRARIES)
    needs_libraries = s.report.is_windows and "DLL" in s.tried("torch").said
    fix = windows if needs_libraries else remedies.torch_build()
    return _broken(s, "torch", "torch does not import", "nothing can be computed", fix, fatal=True)


def device(s: CheckContext) -> Finding:
    """A product on whatever would compute."""
    done = _ran(s, "device", "a product and its gradient ran")
    fix = remedies.driver(s.report) if s.nvidia else remedies.torch_build("cpu")
    consequence = "training falls back to the CPU" if s.nvidia else "nothing can be computed"
    return done or _broken(s, "device", "a matrix product", consequence, fix, fatal=True)


def four_bit(s: CheckContext) -> Finding:
    """A product with a 4-bit weight, forward and backward."""
    done = _ran(s, "nf4", "a real NF4 product ran")
    fix = remedies.install("bitsandbytes", force=True)
    return done or _broken(s, "nf4", "a 4-bit product", WITHOUT_4_BIT, fix, fatal=bool(s.report.cuda_gpus))


def eight_bit(s: CheckContext) -> Finding:
    """The same with an 8-bit weight."""
    done = _ran(s, "int8", "a real 8-bit product ran")
    fix = remedies.place("--method qlora-4")
    return done or _broken(s, "int8", "an 8-bit product", "--method qlora-8 does not work; the others do", fix)


def eight_bit_optimizer(s: CheckContext) -> Finding:
    """A step of bitsandbytes' 8-bit AdamW."""
    done = _ran(s, "adam8bit", "a real step ran")
    fix = remedies.place("--optimizer adamw, the default")
    return done or _broken(s, "adam8bit", "an 8-bit AdamW step", "--optimizer adamw-8bit is refused", fix)


def fused_adamw(s: CheckContext) -> Finding:
    """A step of torch's fused AdamW."""
    done = _ran(s, "adamw", "a real step ran")
    consequence = "training falls back to the plain one: the same result, a little slower"
    return done or _broken(s, "adamw", "a fused AdamW step", consequence, remedies.torch_build())


def varlen(s: CheckContext) -> Finding:
    """torch's packed attention."""
    done = _ran(s, "varlen", "packed sequences equal separate ones")
    consequence = "training falls back to sdpa with a mask: the same result, slower and with more memory"
    return done or _broken(s, "varlen", "packed attention", consequence, remedies.torch_build())


def cuda_graphs(s: CheckContext) -> Finding:
    """A captured computation."""
    done = _ran(s, "graphs", "a captured gradient ran again")
    consequence = "training falls back to launching each kernel: the same result, slower with short steps"
    return done or _broken(s, "graphs", "CUDA graphs", consequence, remedies.driver(s.report))


def dequantize_kernel(s: CheckContext) -> Finding:
    """Our kernel for 4-bit weights."""
    done = _ran(s, "dequantize", "it makes the weights that bitsandbytes makes")
    consequence = "training falls back to bitsandbytes' kernels: the same result, a little slower"
    return done or _broken(s, "dequantize", "our kernel for 4-bit weights", consequence, _triton_fix(s))


def loss_kernel(s: CheckContext) -> Finding:
    """Our kernel for the loss."""
    done = _ran(s, "cross_entropy", "its losses and gradients equal torch's")
    consequence = "training falls back to torch's own words: the same result, slower and with more memory"
    return done or _broken(s, "cross_entropy", "our kernel for the loss", consequence, _triton_fix(s))


def triton(s: CheckContext) -> Finding:
    """A kernel of our own, compiled here."""
    done = _ran(s, "triton", "a kernel was compiled and ran")
    consequence = "training falls back to kernels without Triton: none of ours, no Liger, no Unsloth"
    return done or _broken(s, "triton", "a Triton kernel", consequence, _triton_fix(s))


def _triton_fix(s: CheckContext) -> Fix:
    windows = remedies.install("triton-windows", force=True)
    return remedies.by_system(s.report, windows=windows, linux=remedies.command("sudo apt install gcc python3-dev"))


def liger(s: CheckContext) -> Finding:
    """Liger's kernels for layers."""
    done = _ran(s, "liger", "its norm and activation equal torch's")
    consequence = "training falls back to the model's own layers: the same result, slower and with more memory"
    return done or _broken(s, "liger", "Liger's layers", consequence, remedies.install("liger-kernel", force=True))


def unsloth(s: CheckContext) -> Finding:
    """Unsloth's import, in a process of its own."""
    done = _ran(s, "unsloth", "imports")
    fix = remedies.install("unsloth", "unsloth_zoo", force=True)
    return done or _broken(
        s, "unsloth", "unsloth does not import", "--backend unsloth is refused; the plain one trains", fix
    )


def workers(s: CheckContext) -> Finding:
    """A data loader process."""
    done = _ran(s, "workers", "a loader process started and answered")
    fix = remedies.place("--workers 0, what a plan takes then")
    consequence = "training falls back to loading in its own process: next to no difference"
    return done or _broken(s, "workers", "a loader process", consequence, fix)


def all_reduce(s: CheckContext) -> Finding:
    """A sum over all cards."""
    done = _ran(s, "all_reduce", "the cards added up a number")
    fix = remedies.environment_variable(s.report, "NCCL_P2P_DISABLE", "1")
    return done or _broken(s, "all_reduce", "a sum over all cards", "training uses one card", fix)
