"""What the monitor reads of a step that ended."""

from typing import Protocol


class StepView(Protocol):
    """The step as it was planned."""

    @property
    def order(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def prefill(self) -> object | None: ...
    @property
    def decode(self) -> object | None: ...


class Outcome(Protocol):
    """The step as it went."""

    @property
    def view(self) -> StepView: ...
    @property
    def start_ps(self) -> int: ...
    @property
    def end_ps(self) -> int: ...
