"""Validators of hardware values; each refuses by naming the field and what was expected."""

from typing import Any

from hetmem.errors import ConfigError


def positive(instance: Any, attribute: Any, value: Any) -> None:
    """Refuse what is not a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(attribute.name, f"expected a positive number, not {value!r}")


def not_negative(instance: Any, attribute: Any, value: Any) -> None:
    """Refuse what is not a finite number of at least zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConfigError(attribute.name, f"expected a number of at least 0, not {value!r}")


def whole(instance: Any, attribute: Any, value: Any) -> None:
    """Refuse what is not a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(attribute.name, f"expected a whole number of at least 1, not {value!r}")


def fraction(instance: Any, attribute: Any, value: Any) -> None:
    """Refuse what is not a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(attribute.name, f"expected a fraction from 0 to 1, not {value!r}")
