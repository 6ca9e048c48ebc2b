"""Loading a model with proof that its files hold every weight, no weight for something else, and numbers throughout.

transformers fills what is missing with random values and drops what is left over, with a line of its log.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qlora_core.model.parts import family_of
from qlora_core.model.watched_weights import ANY_LAYER, watched_weights
from qlora_profiles.base_files import weight_files
from qlora_profiles.errors import UserError
from qlora_profiles.weight_names import AGAIN, NOT_ONE_MODEL, counted, extra_layers, is_beside_text, saved_as, sides

CONFIG_ARGUMENTS = ("revision", "cache_dir", "trust_remote_code")

Warn = Callable[[str], None]


def load_causal_lm(source: str, warn: Warn | None = None, **arguments: Any) -> Any:
    """The language model in a folder or on the hub, whole; ``arguments`` are those of ``from_pretrained``.

    Names and shapes are compared before a weight is read where the files lie on this disk, and once more after.
    ``warn`` is told of weights that this model has no use for.

    Raises:
        UserError: weights are missing, left over, of another shape, or no numbers. What transformers raises else.
    """
    from transformers import AutoModelForCausalLM

    check_names(source, arguments)
    with watched_weights() as weights, _without_report():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
    model, found = loaded
    unused = _check_found(source, model, found)
    if unused and warn is not None:
        warn(f"{source}: not used, for no part of this model: {counted(unused)}")
    zeros = weights.check(source, model, arguments.get("dtype"))
    if zeros and warn is not None:
        warn(f"{source}: nothing but zeros in {counted(zeros)}: put in untrained, or a damaged download")
    return model


def check_names(source: str, arguments: Mapping[str, Any]) -> None:
    """Compare the names and shapes in a model's files with those of its class; not a weight is read.

    Nothing where that can only be told by loading: files that are still on the hub, that are quantised already, or
    of a class of their own.

    Raises:
        UserError: weights are missing, left over, or of another shape.
    """
    from transformers import AutoConfig

    folder = _folder(source, arguments)
    shapes = _shapes(folder) if folder is not None else {}
    if not shapes:
        return
    config = AutoConfig.from_pretrained(source, **{k: arguments[k] for k in CONFIG_ARGUMENTS if k in arguments})
    if getattr(config, "auto_map", None) or _quantised(config):
        return
    outcome = _on_meta(config, shapes)
    if outcome is not None:
        _check_found(source, *outcome)


def _quantised(config: Any) -> bool:
    return any(getattr(each, "quantization_config", None) for each in (config, config.get_text_config()))


def _folder(source: str, arguments: Mapping[str, Any]) -> Path | None:
    """Where a model's files lie on this disk."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with suppress(HFValidationError):
        where = {"cache_dir": arguments.get("cache_dir"), "revision": arguments.get("revision")}
        found = try_to_load_from_cache(source, "config.json", **where)
        return Path(found).parent if isinstance(found, str) else None
    return None


def _shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor that transformers would load from a folder; none where not all files are there.

    Raises:
        UserError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    files = weight_files(folder)
    if not all(path.is_file() for path in files):
        return {}
    shapes: dict[str, list[int]] = {}
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path}: damaged ({error})", AGAIN) from error
    return shapes


def _on_meta(config: Any, shapes: Mapping[str, Collection[int]]) -> tuple[Any, Mapping[str, Any]] | None:
    """A model without memory, loaded from tensors without any, and what transformers says of their names.

    ``None`` where that cannot be tried: then loading tells.
    """
    import torch
    from transformers import AutoModelForCausalLM

    meta = torch.device("meta")
    state = {name: torch.empty(tuple(shape), dtype=torch.bfloat16, device=meta) for name, shape in shapes.items()}
    with suppress(Exception), _without_report("transformers"), _without_progress():
        with meta:
            empty = AutoModelForCausalLM.from_config(config)
        model, found = type(empty).from_pretrained(
            None,
            config=empty.config,
            state_dict=state,
            device_map={"": meta},
            dtype=torch.bfloat16,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        return model, found
    return None


@contextmanager
def _without_report(of: str = "transformers.modeling_utils") -> Iterator[None]:
    """transformers' table of what is missing and left over says the same as the refusal, in many lines."""
    logger = logging.getLogger(of)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _without_progress() -> Iterator[None]:
    from transformers.utils import logging as reports

    shown = reports.is_progress_bar_enabled()
    reports.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            reports.enable_progress_bar()


def _check_found(source: str, model: Any, found: Mapping[str, Any]) -> list[str]:
    """Refuse what is missing, misshapen or left over inside of the model; returns the weights of other parts.

    Raises:
        UserError: names up to three of them.
    """
    missing, left_over = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing and (wrapped := saved_as(left_over)):
        name, as_what = wrapped
        raise UserError(f"{source}: its weights are those of {as_what.meaning} ({name})", as_what.fix)
    if found["mismatched_keys"]:
        name, held, wanted = sorted(found["mismatched_keys"])[0]
        more = f" and {len(found['mismatched_keys']) - 1} more" if len(found["mismatched_keys"]) > 1 else ""
        said = f"{name}: {sides(held)} in the file, {sides(wanted)} by config.json"
        raise UserError(f"{source}: of another shape than the model: {said}{more}", NOT_ONE_MODEL)
    if missing:
        called = f"; they hold {counted(left_over)} that the model has not" if left_over else ""
        raise UserError(f"{source}: missing in its files: {counted(missing)}{called}", NOT_ONE_MODEL)
    inside = [name for name in left_over if _is_inside(name, model)]
    if inside:
        said = f"its files hold {counted(inside)}, which the model of its config.json has not"
        raise UserError(f"{source}: {said}", NOT_ONE_MODEL)
    return [name for name in left_over if not is_beside_text(name, family_of(model))]


def _is_inside(name: str, model: Any) -> bool:
    """Whether a weight that the model has not would be one of a layer of it, or a layer after its last."""
    found = ANY_LAYER.match(name)
    if found is None:
        return saved_as([name]) is not None or _module_there(model, name.rpartition(".")[0])
    if _module_there(model, found["layer"]):
        return True
    stack = found["layer"].rpartition(".")[0]
    text = model.config.get_text_config()
    extra = extra_layers(lambda name: getattr(text, name, None))
    return _module_there(model, stack) and int(found["index"]) >= len(model.get_submodule(stack)) + extra


def _module_there(model: Any, path: str) -> bool:
    if not path:
        return False
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
