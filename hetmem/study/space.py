"""What a search may vary: names of a point, each with values to choose from or a range."""

from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from math import prod
from typing import TYPE_CHECKING, Any

from attrs import frozen

from hetmem.errors import ConfigError
from hetmem.study.point import FIELDS, grid, named_values, typed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FORM = "expected NAME=VALUE,VALUE,… or NAME=LOW..HIGH or NAME=LOW..HIGH:STEP"


@frozen
class Choice:
    """One of ``values``."""

    name: str
    values: tuple[Any, ...]

    def distribution(self) -> "BaseDistribution":
        """Return it as Optuna wants it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)


@frozen
class Span:
    """A number from ``low`` to ``high``, both included; in steps of ``step``, or any where that is None."""

    name: str
    low: int | float
    high: int | float
    step: int | float | None

    @property
    def values(self) -> tuple[Any, ...] | None:
        """Every number of it, or None where they have no end."""
        if self.step is None:
            return None
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        count = int((Decimal(str(self.high)) - low) / step) + 1
        kind = type(self.low)
        return tuple(kind(low + step * k) for k in range(count))

    def distribution(self) -> "BaseDistribution":
        """Return it as Optuna wants it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int):
            return IntDistribution(self.low, self.high, step=self.step)
        return FloatDistribution(self.low, self.high, step=self.step)


Dimension = Choice | Span


def space(texts: Iterable[str]) -> list[Dimension]:
    """Return the dimensions that ``NAME=…`` texts spell.

    Raises
    ------
    ConfigError
        When a text has another form, or a name comes twice.
    """
    named = named_values("space", FORM, texts)
    return [_span(name, given) if ".." in given else _choice(name, given) for name, given in named]


def _choice(name: str, given: str) -> Choice:
    return Choice(name, tuple(dict.fromkeys(typed(name, value.strip()) for value in given.split(","))))


def _span(name: str, given: str) -> Span:
    text = f"{name}={given}"
    bounds, _, by = given.partition(":")
    low, _, high = bounds.partition("..")
    try:
        first, last, step = Decimal(low.strip()), Decimal(high.strip()), Decimal(by.strip()) if by else None
    except InvalidOperation:
        raise ConfigError("space", f"{FORM}, not {text!r}") from None
    whole = all(value is None or value == value.to_integral_value() for value in (first, last, step))
    whole = whole and not any("." in part for part in (low.strip(), high.strip(), by))
    if FIELDS.get(name, float) is int and not whole:
        raise ConfigError("space", f"{name} takes whole numbers, not {given!r}")
    if FIELDS.get(name, float) not in (int, float):
        raise ConfigError("space", f"{name} has no range, list its values")
    if step is None and whole:
        step = Decimal(1)
    if last < first or (step is not None and step <= 0):
        raise ConfigError("space", f"{text!r}: expected LOW <= HIGH and a STEP above 0")
    if step is not None:
        last = first + (last - first) // step * step
    kind = int if whole else float
    return Span(name, kind(first), kind(last), None if step is None else kind(step))


def combinations(dimensions: Sequence[Dimension]) -> int | None:
    """Return the number of combinations, or None where there is no end of them."""
    counts = [None if one.values is None else len(one.values) for one in dimensions]
    return None if None in counts else prod(count for count in counts if count is not None)


def every(dimensions: Sequence[Dimension]) -> list[dict[str, Any]]:
    """Return every combination of dimensions that have an end."""
    return grid({one.name: one.values or () for one in dimensions})
