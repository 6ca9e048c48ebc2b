"""Loading a base model and its tokenizer from a folder or the hub, in the precision that a plan names."""

from pathlib import Path
from typing import Any

from qlora_core.model.bitsandbytes import import_bitsandbytes, keep_differentiable
from qlora_core.model.whole_weights import Warn, load_causal_lm
from qlora_core.session.ranks import SINGLE
from qlora_profiles.errors import EnvironmentProblem, UserError, first_line
from qlora_profiles.settings import Execution, Recipe, Run
from qlora_profiles.weight_names import AGAIN, NOT_ONE_MODEL

CONVERTED_WRONG = "conversion of the weights"
"""What transformers (5.17) says where weights cannot be joined to those of the model's layers."""


def local_model(recipe: Recipe, run: Run) -> str:
    """Where the model is loaded from: a folder, ``local_dir`` once it holds it, or the hub id.

    A hub model with ``local_dir`` is downloaded there first. Raises what huggingface_hub does where that fails.
    """
    if Path(recipe.model).is_dir() or run.local_dir is None:
        return recipe.model
    folder = Path(run.local_dir)
    if not (folder / "config.json").is_file():
        from huggingface_hub import snapshot_download

        snapshot_download(recipe.model, revision=recipe.revision, local_dir=folder)
    return str(folder)


def hub_arguments(recipe: Recipe, run: Run, source: str) -> dict[str, Any]:
    """What every ``from_pretrained`` call here passes on."""
    arguments: dict[str, Any] = {"trust_remote_code": run.trust_remote_code}
    if not Path(source).is_dir():
        arguments |= {"revision": recipe.revision, "cache_dir": run.cache}
    return arguments


def load_base(recipe: Recipe, execution: Execution, run: Run, attention: str, warn: Warn | None = None) -> Any:
    """The base model on the plan's device: quantised, in the compute dtype, or float32 when all of it is trained.

    ``warn`` is told of weights that it has no use for.

    Raises:
        UserError: it cannot be loaded: gated, not there, or with code of its own (``explained``); its weights are not
            all there, or no numbers (``load_causal_lm``).
        EnvironmentProblem: it needs a package that is missing.
        RuntimeError: the device's memory ran out.
    """
    source = local_model(recipe, run)
    arguments = hub_arguments(recipe, run, source)
    quantisation = quantisation_config(recipe, execution)
    if quantisation is not None:
        arguments["quantization_config"] = quantisation
    with explained(source):
        model = load_causal_lm(
            source,
            warn,
            dtype=weight_dtype(recipe, execution),
            device_map={"": SINGLE.place(execution.device)},
            attn_implementation=attention,
            **arguments,
        )
    keep_differentiable(model)
    if recipe.method == "qlora-8":
        from qlora_core.model.int8 import forget_inputs

        forget_inputs(model)
    return model


def weight_dtype(recipe: Recipe, execution: Execution) -> Any:
    """Trained weights are float32, frozen ones in the compute dtype."""
    import torch

    return torch.float32 if recipe.method == "full" else getattr(torch, execution.compute_dtype)


def quantisation_config(recipe: Recipe, execution: Execution) -> Any:
    """bitsandbytes' settings for the method, or ``None`` for a 16-bit base."""
    if recipe.method not in ("qlora-4", "qlora-8"):
        return None
    import torch
    from transformers import BitsAndBytesConfig

    import_bitsandbytes(execution.device)
    if recipe.method == "qlora-8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.quant_type,
        bnb_4bit_use_double_quant=recipe.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, execution.compute_dtype),
    )


class explained:
    """Turn the libraries' errors while loading ``source`` into one line with a way on.

    Raises:
        UserError: in place of a gated model, of files that are not there, of code that nobody allowed.
        EnvironmentProblem: in place of an ImportError.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception):
            return
        name = type(error).__name__
        if "GatedRepoError" in (name, type(error.__cause__).__name__):  # transformers wraps it in an OSError
            raise UserError(f"{self.source}: gated; your account needs access and a token", "hf auth login") from error
        if isinstance(error, OSError):
            ways = "a local folder, HF_ENDPOINT=<mirror>, or: qlora-run demo"
            raise UserError(f"{self.source}: cannot be loaded ({first_line(error)})", ways) from error
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            own_code = f"{self.source}: comes with Python code of its own that must run to load it"
            raise UserError(own_code, "--trust-remote-code, if you trust its authors") from error
        if isinstance(error, ValueError) and "Unrecognized configuration class" in str(error):
            no_text_form = f"{self.source}: transformers has no text-only form of this model"
            raise UserError(no_text_form, "another --model") from error
        if name == "SafetensorError":
            raise UserError(f"{self.source}: its weights are damaged ({first_line(error)})", AGAIN) from error
        if isinstance(error, RuntimeError) and CONVERTED_WRONG in str(error):
            raise UserError(f"{self.source}: its weights do not fit its config.json", NOT_ONE_MODEL) from error
        if isinstance(error, ImportError):
            raise EnvironmentProblem(f"{self.source}: {error}", "qlora-run doctor") from error
