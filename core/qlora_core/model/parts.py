"""Where the parts of a loaded model lie, by its family."""

from operator import attrgetter
from typing import Any

from qlora_profiles.architectures import Architecture, architecture_of


def family_of(model: Any) -> Architecture:
    """What is known of a model's family, or else of its text part's."""
    return architecture_of(model.config.model_type, model.config.get_text_config().model_type)


def drops(config: Any) -> bool:
    """Whether a model itself drops values while it trains."""
    return any("drop" in name and isinstance(value, float) and value > 0 for name, value in vars(config).items())


def text_decoder(model: Any) -> Any:
    """The stack of text layers below the head, of a transformers model or of PEFT's wrapper around one.

    Where the family is not known, the model is asked.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    path = architecture_of(inner.config.model_type).decoder
    return attrgetter(path)(inner) if path else inner.get_decoder()
