"""The ledger: who holds which bytes in which memory. Nothing is ever held that was not allocated here."""

from collections.abc import Mapping

from hetmem.errors import CapacityError, ConservationError


class Ledger:
    """Bytes by owner and memory; capacity is enforced.

    Parameters
    ----------
    capacities
        Bytes of each memory by name.
    enforced
        Whether to refuse what does not fit; otherwise it is only counted.
    """

    def __init__(self, capacities: Mapping[str, int], enforced: bool = True) -> None:
        self.capacities, self.enforced = dict(capacities), enforced
        self._held: dict[str, dict[str, int]] = {memory: {} for memory in capacities}
        self._used = dict.fromkeys(capacities, 0)
        self._peak = dict.fromkeys(capacities, 0)

    def allocate(self, owner: str, memory: str, n_bytes: int) -> None:
        """Give ``owner`` another ``n_bytes`` in ``memory``.

        Raises
        ------
        CapacityError
            When they do not fit; nothing is allocated then.
        """
        used = self._used[memory] + n_bytes
        if used > self.capacities[memory] and self.enforced:
            raise CapacityError(
                memory, n_bytes, self.free_bytes(memory), self.capacities[memory], tuple(self._held[memory].items())
            )
        held = self._held[memory]
        held[owner] = held.get(owner, 0) + n_bytes
        self._used[memory] = used
        if used > self._peak[memory]:
            self._peak[memory] = used

    def free(self, owner: str, memory: str, n_bytes: int) -> None:
        """Take ``n_bytes`` of ``owner`` in ``memory`` back.

        Raises
        ------
        ConservationError
            When the owner does not hold so many.
        """
        self._require_held(owner, memory, n_bytes)
        held = self._held[memory]
        left = held.get(owner, 0) - n_bytes
        if left:
            held[owner] = left
        else:
            held.pop(owner, None)
        self._used[memory] -= n_bytes

    def move(self, owner: str, source: str, target: str, n_bytes: int) -> None:
        """Move ``n_bytes`` of ``owner``; the target must have room while the source still holds them.

        A failed move changes nothing.

        Raises
        ------
        CapacityError, ConservationError
            As :meth:`allocate` and :meth:`free`.
        """
        self._require_held(owner, source, n_bytes)
        self.allocate(owner, target, n_bytes)
        self.free(owner, source, n_bytes)

    def _require_held(self, owner: str, memory: str, n_bytes: int) -> None:
        held = self.held_bytes(owner, memory)
        if n_bytes > held:
            raise ConservationError("ledger", f"{owner} gives up {n_bytes} bytes in {memory} but holds {held}")

    def held_bytes(self, owner: str, memory: str) -> int:
        """Return the bytes that ``owner`` holds in ``memory``."""
        return self._held[memory].get(owner, 0)

    def used_bytes(self, memory: str) -> int:
        """Return the bytes held in ``memory`` by all."""
        return self._used[memory]

    def free_bytes(self, memory: str) -> int:
        """Return the bytes of ``memory`` that nobody holds."""
        return self.capacities[memory] - self._used[memory]

    @property
    def excess_bytes(self) -> int:
        """The most bytes that any memory has held beyond its capacity; 0 unless capacity is not enforced."""
        return max(max(0, self._peak[memory] - most) for memory, most in self.capacities.items())

    def peak_bytes(self, memory: str) -> int:
        """Return the most bytes that ``memory`` has held at once."""
        return self._peak[memory]

    def holdings(self) -> list[tuple[str, str, int]]:
        """Return (memory, owner, bytes) of everything held, in the order of allocation."""
        return [(memory, owner, n) for memory, held in self._held.items() for owner, n in held.items()]
