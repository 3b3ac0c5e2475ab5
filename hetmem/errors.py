"""The one exception tree of hetmem.

SimPy rebuilds an exception as ``type(e)(*e.args)`` when it leaves a process, so every class
here takes positional arguments only, keeps them as ``args`` and words its message in ``__str__``.
"""

from collections.abc import Iterable


class HetmemError(Exception):
    """Root of every error that hetmem raises on purpose."""


class ConfigError(HetmemError):
    """A configuration value that cannot be used: ``ConfigError(path, problem)``."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class ConfigErrors(HetmemError):
    """Several configuration errors at once, a line each: ``ConfigErrors(errors)``."""

    def __init__(self, errors: tuple[ConfigError, ...]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class UnknownNameError(HetmemError):
    """A name that is not in its catalogue: ``UnknownNameError(kind, name, known)``."""

    def __init__(self, kind: str, name: str, known: tuple[str, ...]) -> None:
        super().__init__(kind, name, known)
        self.kind, self.name, self.known = kind, name, known

    def __str__(self) -> str:
        return f"unknown {self.kind} {self.name!r}{suggestion(self.name, self.known)}"


class RangeError(HetmemError):
    """A quantity beyond what its column holds: ``RangeError(quantity, most)``, the most that it holds in words."""

    def __init__(self, quantity: str, most: str) -> None:
        super().__init__(quantity, most)
        self.quantity, self.most = quantity, most

    def __str__(self) -> str:
        return (
            f"{self.quantity}: more than {self.most}; is a rate or a size of the configuration off by orders "
            "of magnitude?"
        )


class WorkloadError(HetmemError):
    """A trace or length table that cannot be read: ``WorkloadError(where, problem)``."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(where, problem)
        self.where, self.problem = where, problem

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class CapacityError(HetmemError):
    """A memory that cannot hold what was asked: ``CapacityError(memory, asked, free, capacity, held)``.

    ``asked``, ``free`` and ``capacity`` are bytes; ``held`` names the owners and their bytes. ``nominal`` is what
    the device has where only a part of it, the ``capacity``, is used.
    """

    def __init__(
        self, memory: str, asked: int, free: int, capacity: int, held: tuple[tuple[str, int], ...],
        nominal: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(memory, asked, free, capacity, held, *(() if nominal is None else (nominal,)))
        self.memory, self.asked, self.free, self.capacity, self.held = memory, asked, free, capacity, held
        self.nominal = nominal

    def __str__(self) -> str:
        held = ", ".join(f"{owner} {n / 1e9:.2f} GB" for owner, n in self.held) or "nothing"
        usable = "" if self.nominal is None else f" usable of {self.nominal / 1e9:.2f} GB"
        return (
            f"{self.memory}: {self.asked / 1e9:.2f} GB asked, {self.free / 1e9:.2f} GB free of "
            f"{self.capacity / 1e9:.2f} GB{usable} (holds {held})"
        )


class UnsupportedError(HetmemError):
    """A system that refuses a model, machine or workload: ``UnsupportedError(system, reason)``."""

    def __init__(self, system: str, reason: str) -> None:
        super().__init__(system, reason)
        self.system, self.reason = system, reason

    def __str__(self) -> str:
        return f"{self.system}: {self.reason}"


class DeadlockError(HetmemError):
    """Work is outstanding and no event is left: ``DeadlockError(waiting)``, a line per waiter."""

    def __init__(self, waiting: tuple[str, ...]) -> None:
        super().__init__(waiting)
        self.waiting = waiting

    def __str__(self) -> str:
        return "deadlock: no event is left, but work is outstanding\n" + "\n".join(self.waiting)


class ConservationError(HetmemError):
    """A finished run breaks a conservation law or a physical bound: ``ConservationError(law, detail)``."""

    def __init__(self, law: str, detail: str) -> None:
        super().__init__(law, detail)
        self.law, self.detail = law, detail

    def __str__(self) -> str:
        return f"{self.law} violated: {self.detail}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a near miss, else the list of what is known."""
    from difflib import get_close_matches

    known = list(known)
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
