"""The link between GPUs and disaggregated PIM stacks: NVLink, PCIe or CXL, both directions apart.

Modelled: a rate per direction, of one link for all GPUs or one link each, and a latency per transfer. Ignored:
packets, and contention with anything but the transfers of the model. PAPI (ASPLOS 2025) gives no rates; those of
the AttAcc simulator (ASPLOS 2024) are taken, or the measured ones of the same link.
"""

from attrs import field, frozen, validators

from hetmem.catalog import entry
from hetmem.catalog.structure import structure
from hetmem.hardware.link import link


@frozen
class AttentionLink:
    """Rates per direction, ``shared`` by all GPUs or one each; ``measured`` names the link behind it."""

    name: str
    bytes_per_s: float = field(validator=validators.gt(0))
    shared: bool
    latency_s: float = field(validator=validators.ge(0))
    measured: str

    @classmethod
    def named(cls, name: str = "nvlink3", measured: bool = False) -> "AttentionLink":
        """Return the link of the catalogue called ``name``, at its nominal or its ``measured`` rate.

        Raises
        ------
        UnknownNameError
            When there is no such link.
        """
        nominal = structure(cls, entry("attention_links", name))
        if not measured:
            return nominal
        path = link(nominal.measured).path()
        latency_s = max(nominal.latency_s, path.latency_s)
        return cls(nominal.name, path.gbs * 1e9, nominal.shared, latency_s, nominal.measured)

    def transfer_s(self, gpus: int, n_bytes: float) -> float:
        """Return the time of ``n_bytes`` in one direction, spread over the GPUs' links."""
        return self.latency_s + n_bytes / (self.bytes_per_s * (1 if self.shared else gpus))
