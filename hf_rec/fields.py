"""
Strict types for the fields of argument dataclasses: YAML files and keyword arguments are not checked by argparse.
"""

from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def _matches(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_matches(value, option) for option in get_args(hint))
    if origin in (list, dict):
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


def check_field_types(config: Any, owner: type) -> None:
    """
    Check the values of the fields that one dataclass declares, its parents' apart.

    Args:
        config (dataclass instance): What to check.
        owner (`type`): The dataclass whose own fields are checked.

    Raises:
        `TypeError`: Names the field, the value and the type it should have.
    """
    hints = get_type_hints(owner)
    for name in owner.__annotations__:
        value = getattr(config, name)
        if not _matches(value, hints[name]):
            wanted = getattr(hints[name], "__name__", None) if get_origin(hints[name]) is None else str(hints[name])
            raise TypeError(
                f"`{name}` must be of type {wanted or hints[name]}, got {value!r} ({type(value).__name__})."
            )
