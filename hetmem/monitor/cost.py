"""Cost of a run: capital over the lifetime plus energy, and the wear of an SSD.

Modelled: ``$/Mtoken = (price / lifetime x time + kWh x PUE x tariff) / tokens`` (the convention of LIA, ISCA
2025); bytes written against the drive's rated endurance. Prices move: each carries its date.

Ignored: staff, floor space, cooling plant beyond the PUE, resale. A device without a price makes the capital
unknown, with the reason.
"""

import math
from collections.abc import Sequence

from attrs import field, frozen, validators

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.monitor.carbon import J_PER_KWH, S_PER_YEAR


@frozen
class _Price:
    name: str
    date: str
    usd: float | None = None
    usd_per_gb: float | None = None


@frozen
class Defaults:
    """Default lifetime of capital, tariff and SSD endurance; every one may be overridden by a run."""

    name: str
    capital_years: float
    usd_per_kwh: float
    endurance_tbw_per_tb: float


def defaults() -> Defaults:
    """Return the defaults of the catalogue."""
    return structure(Defaults, catalog.entry("prices", "defaults"))


@frozen
class Purchase:
    """A device and its price in dollars at ``date``; a price of None carries the ``reason``.

    ``share`` is the share of its capacity that the run pays for.
    """

    name: str
    usd: float | None
    date: str = ""
    share: float = field(default=1.0, validator=(validators.ge(0), validators.le(1)))
    reason: str = ""

    def __attrs_post_init__(self) -> None:
        if self.usd is None and not self.reason:
            raise ConfigError(f"{self.name}.reason", "a device without a price must say why")


def purchase(device: str, gb: float = 0.0, share: float = 1.0) -> Purchase:
    """Return ``device`` with its catalogue price, times ``gb`` (1e9 bytes) where the price is per GB."""
    try:
        price = structure(_Price, catalog.entry("prices", device))
    except UnknownNameError:
        return Purchase(device, None, share=share, reason="no price is known")
    if (price.usd is None) == (price.usd_per_gb is None):
        raise ConfigError(f"prices.{device}", "expected either usd or usd_per_gb")
    usd = price.usd if price.usd_per_gb is None else price.usd_per_gb * gb
    return Purchase(device, usd, price.date, share)


@frozen
class Cost:
    """Dollars of a run: ``capital`` (None where a price is missing, see ``unknown``) and ``energy``."""

    capital_usd: float | None
    energy_usd: float
    unknown: tuple[str, ...]

    def per_mtoken(self, tokens: int) -> tuple[float | None, float | None]:
        """Return (capital, energy) dollars per million tokens; None for both without tokens."""
        if tokens == 0:
            return None, None
        capital = None if self.capital_usd is None else self.capital_usd * 1e6 / tokens
        return capital, self.energy_usd * 1e6 / tokens


def run_cost(
    purchases: Sequence[Purchase],
    joules: float,
    elapsed_s: float,
    pue: float,
    usd_per_kwh: float,
    capital_years: float,
) -> Cost:
    """Return the cost of ``elapsed_s`` of the devices' lifetime and of the energy drawn in it.

    Raises
    ------
    ConfigError
        When the lifetime is not positive, the PUE below 1, or the tariff or the time negative.
    """
    if not capital_years > 0:
        raise ConfigError("capital_years", f"expected a positive time, not {capital_years}")
    if not pue >= 1:
        raise ConfigError("pue", f"expected at least 1, not {pue}")
    if not usd_per_kwh >= 0:
        raise ConfigError("usd_per_kwh", f"expected 0 or more, not {usd_per_kwh}")
    if not elapsed_s >= 0:
        raise ConfigError("elapsed_s", f"expected 0 or more, not {elapsed_s}")
    unknown = tuple(f"{p.name}: {p.reason}" for p in purchases if p.usd is None)
    time_share = elapsed_s / (capital_years * S_PER_YEAR)
    capital = math.fsum(p.usd * p.share for p in purchases if p.usd is not None) * time_share
    return Cost(None if unknown else capital, joules / J_PER_KWH * pue * usd_per_kwh, unknown)


@frozen
class Wear:
    """SSD wear: bytes written, and their share of the bytes that the drive is rated to take."""

    written_bytes: int
    endurance_share: float


def ssd_wear(written_bytes: int, capacity_bytes: int, endurance_tbw_per_tb: float) -> Wear:
    """Return the wear of one drive. Reads do not wear it: a system that only streams weights stays at 0.

    Raises
    ------
    ConfigError
        When the capacity or the endurance is not positive, or the bytes negative.
    """
    if not capacity_bytes > 0:
        raise ConfigError("capacity_bytes", f"expected a positive capacity, not {capacity_bytes}")
    if not endurance_tbw_per_tb > 0:
        raise ConfigError("endurance_tbw_per_tb", f"expected a positive endurance, not {endurance_tbw_per_tb}")
    if written_bytes < 0:
        raise ConfigError("written_bytes", f"expected 0 or more, not {written_bytes}")
    return Wear(written_bytes, written_bytes / (capacity_bytes * endurance_tbw_per_tb))
