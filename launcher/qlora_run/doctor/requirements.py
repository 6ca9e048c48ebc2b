"""What installed packages ask of each other, by their own metadata; nothing is imported."""

from collections.abc import Callable
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version


def unmet(package: str) -> tuple[str, ...]:
    """The requirements of an installed package that are not met: ``("trl<=1.15.0 (1.16.0 is installed)", ...)``.

    Extras are left out. Empty where the package itself is not installed.
    """
    try:
        asked = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return ()
    return tuple(said for text in asked if (said := _unmet(Requirement(text), installed_version)))


def installed_version(package: str) -> str | None:
    """A package's version, ``None`` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _unmet(requirement: Requirement, version_of: Callable[[str], str | None]) -> str | None:
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return None
    version = version_of(requirement.name)
    asked = f"{requirement.name}{requirement.specifier}"
    if version is None:
        return f"{asked} (not installed)"
    return None if allows(requirement.specifier, version) else f"{asked} ({version} is installed)"


def allows(specifier: SpecifierSet, version: str) -> bool:
    """Whether a version is within a specifier; a build's local part and a pre-release are no reason against it."""
    try:
        return specifier.contains(Version(version).public, prereleases=True)
    except InvalidVersion:
        return True
