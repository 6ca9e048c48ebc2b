"""YAML as profiles and recipes are written in: plain values, no anchors, and every mistake one line."""

from typing import Any

from qlora_profiles.errors import UserError, first_line
from qlora_profiles.small_file import check_levels


def read_yaml(text: str, what: str) -> Any:
    """The value of a YAML text; ``what`` is what it is called in errors, such as ``profile mine``.

    Raises:
        UserError: not YAML, nested too deep, or with anchors.
    """
    import yaml

    check_levels(text, what)
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise UserError(f"{what}: anchors and aliases are not read", "every value where it belongs")
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter of values like a 99th month
        raise UserError(f"{what}: not YAML ({first_line(error)})") from error
