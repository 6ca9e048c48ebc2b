"""Whether a checkpoint's headers name all the weights that its config asks for, as they should be.

Only what is sure is refused here: of a listed family every weight is known, of others what one layer lacks that all
the others have. The core compares the rest with the model's own class before it reads a weight.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from qlora_profiles.architectures import ARCHITECTURES, Architecture
from qlora_profiles.errors import UserError
from qlora_profiles.weight_names import AGAIN, NOT_ONE_MODEL, SHOWN, extra_layers, is_beside_text, saved_as, sides
from qlora_run.model_facts import config as configs
from qlora_run.model_facts.config import Config
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.model_facts.safetensors_header import TensorInfo, Tensors
from qlora_run.model_facts.summary import LAYER

FLOATS = ("BF16", "F16", "F32", "F64")
FEWEST_ALIKE = 3
"""Layers that must be alike for another one to lack something."""

Layers = Mapping[int, Mapping[str, TensorInfo]]


def check_complete(source: str, config: Config, tensors: Tensors) -> None:
    """Nothing, where the weights are those of the config's model as far as their headers tell.

    Raises:
        UserError: the weights are wrapped, missing, empty, of another shape or of no number format for weights.
    """
    wrapped = saved_as(tensors)
    if wrapped is not None:
        name, as_what = wrapped
        raise UserError(f"--model {source}  its weights are those of {as_what.meaning} ({name})", as_what.fix)
    family = configs.family_of(config)
    stack, layers = text_layers(tensors, config)
    if not layers:
        return  # summarise says so
    where = f"--model {source}"
    _check_count(where, config, stack, layers)
    _check_values(where, _of_text(tensors, stack, family))
    model_type = str(configs.text_config(config).get("model_type"))
    if model_type in ARCHITECTURES:
        _check_family(where, config, stack, tensors)
    wanted = configs.text_config(config).get("num_hidden_layers") or len(layers)
    _check_alike(where, config, stack, {index: layer for index, layer in layers.items() if index < wanted})


def text_layers(tensors: Tensors, config: Config) -> tuple[str, dict[int, dict[str, TensorInfo]]]:
    """The stack of text layers: the start of its names, and the tensors of each layer by its index.

    It is one of as many layers as the config says, or else the largest.
    """
    family, wanted = configs.family_of(config), configs.text_config(config).get("num_hidden_layers")
    stacks: dict[str, dict[int, dict[str, TensorInfo]]] = {}
    for name, tensor in tensors.items():
        found = LAYER.match(name)
        if found and not is_beside_text(found["stack"], family):
            start = name[: found.start("index")]
            stacks.setdefault(start, {}).setdefault(int(found["index"]), {})[found["rest"]] = tensor
    size = {start: (len(stack) == wanted, _params(stack)) for start, stack in stacks.items()}
    start = max(size, key=lambda each: size[each], default="")
    return start, stacks.get(start, {})


def _params(layers: Layers) -> int:
    return sum(tensor.params for layer in layers.values() for tensor in layer.values())


def _of_text(tensors: Tensors, stack: str, family: Architecture) -> Iterator[tuple[str, TensorInfo]]:
    """The tensors of the text layers, the embedding and the head."""
    ends = tuple(f".{module}.weight" for module in (*family.embedding, *family.head))
    for name, tensor in tensors.items():
        if name.startswith(stack) or (f".{name}".endswith(ends) and not is_beside_text(name, family)):
            yield name, tensor


def _check_count(where: str, config: Config, stack: str, layers: Layers) -> None:
    """As many layers as the config says, none left out."""
    text = configs.text_config(config)
    wanted = text.get("num_hidden_layers")
    if not isinstance(wanted, int):
        return
    missing = [index for index in range(wanted) if index not in layers]
    if missing:
        shown = ", ".join(f"{stack}{index}" for index in missing[:SHOWN])
        said = (
            f"{len(missing)} of {wanted} layers are not in its files ({shown}{', ...' if len(missing) > SHOWN else ''})"
        )
        raise UserError(f"{where}  {said}", NOT_ONE_MODEL)
    beyond = [index for index in layers if index >= wanted + extra_layers(text.get)]
    if beyond:
        said = f"its files hold {max(beyond) + 1} layers, its config.json says num_hidden_layers {wanted}"
        raise UserError(f"{where}  {said}", NOT_ONE_MODEL)


def _check_values(where: str, held: Iterable[tuple[str, TensorInfo]]) -> None:
    """Weights are numbers with a fraction, and there are some."""
    for name, tensor in held:
        if not tensor.params:
            raise UserError(f"{where}  {name} is empty ({sides(tensor.shape)})", AGAIN)
        if tensor.dtype not in FLOATS and len(tensor.shape) > 1:
            said = f"{name} is stored as {tensor.dtype}, and its config.json names no quantisation"
            raise UserError(f"{where}  {said}", "the model in 16 bits, or its own config.json")


def _check_family(where: str, config: Config, stack: str, tensors: Tensors) -> None:
    """Every weight of a listed family, where the stack of its layers lies; experts are stored in several ways."""
    decoder, family = stack.removesuffix("layers."), configs.family_of(config)
    head = f"{family.head[0]}.weight"
    for name, wanted in tensors_from_config(config, where).items():
        if name == head or ("mlp" in name and family.expert_counts):
            continue
        own = decoder + name.removeprefix(f"{family.decoder}.")
        if own not in tensors:
            raise UserError(f"{where}  {own} is missing in its files", NOT_ONE_MODEL)
        if tensors[own].shape != wanted.shape:
            said = f"{own} is {sides(tensors[own].shape)} in its files, {sides(wanted.shape)} by its config.json"
            raise UserError(f"{where}  {said}", NOT_ONE_MODEL)
    if _says_untied(config, family) and not any(f".{name}".endswith(f".{head}") for name in tensors):
        said = f"{head} is missing in its files, and its config.json says tie_word_embeddings false"
        raise UserError(f"{where}  {said}", NOT_ONE_MODEL)


def _says_untied(config: Config, family: Architecture) -> bool:
    """A model that also sees obeys the outer word, whatever its text part says; where there is none, its family's."""
    outer, text = config.get("tie_word_embeddings"), configs.text_config(config).get("tie_word_embeddings")
    return outer is False and text is False and not family.config_defaults.get("tie_word_embeddings")


def _check_alike(where: str, config: Config, stack: str, layers: Layers) -> None:
    """No layer lacks a weight that all the others have, where all the others are alike and some of its kind."""
    if configs.text_config(config).get("num_kv_shared_layers"):
        return
    counts = Counter(frozenset(layer) for layer in layers.values())
    if len(counts) != 2 or min(counts.values()) > 1 or max(counts.values()) < FEWEST_ALIKE:
        return
    usual, odd = (names for names, _ in counts.most_common(2))
    index = next(index for index, layer in layers.items() if frozenset(layer) == odd)
    kinds = {configs.layer_kind(config, other) for other in layers if other != index}
    if odd < usual and configs.layer_kind(config, index) in kinds:
        lacking = sorted(usual - odd)
        shown = ", ".join(f"{stack}{index}.{name}" for name in lacking[:SHOWN])
        raise UserError(f"{where}  {len(lacking)} weights are missing in its files ({shown})", NOT_ONE_MODEL)
