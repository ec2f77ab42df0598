"""
Strict types for the fields of argument dataclasses: neither YAML files nor keyword arguments pass through argparse,
and dataclasses check nothing.
"""

import enum
import types
import typing
from typing import Any


def check_field_types(config: Any, owner: type) -> None:
    """
    Check the values of the fields that one dataclass declares, its parents' apart.

    Args:
        config (dataclass instance): What to check.
        owner (`type`): The dataclass whose own fields are checked.

    Raises:
        `TypeError`: Names the field, the value and the type it should have.
        `ValueError`: The same, for text that is none of the choices of a `typing.Literal`.
    """
    hints = typing.get_type_hints(owner)
    for name in owner.__annotations__:
        value, hint = getattr(config, name), hints[name]
        if not fits(value, hint):
            has_choices = any(typing.get_origin(part) is typing.Literal for part in (hint, *typing.get_args(hint)))
            error = ValueError if has_choices and isinstance(value, str) else TypeError
            raise error(f"`{name}` must be {spell(hint)}, got {value!r} ({type(value).__name__}).")


def fits(value: Any, hint: Any, numbers_as_text: bool = False) -> bool:
    """
    Whether a value is of an annotated type. Classes that YAML cannot spell are left to their dataclass.

    Args:
        value: The value.
        hint: The annotation.
        numbers_as_text (`bool`, *optional*, defaults to `False`): Take `"3e-4"` for a float, as YAML reads it.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option, numbers_as_text) for option in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in (list, tuple) or hint in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value if arguments)
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return _is_number(value, numbers_as_text)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    return True


def spell(hint: Any) -> str:
    """A type as a person writes it, e.g. `int or None`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(spell(option) for option in arguments))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    if hint in (None, type(None)):
        return "null"
    return str(hint) if origin else getattr(hint, "__name__", str(hint))


def _is_number(value: Any, as_text: bool) -> bool:
    if isinstance(value, str) and as_text:
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, int | float) and not isinstance(value, bool)
