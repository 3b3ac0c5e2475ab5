"""The recorder: writes down requests, steps and tasks when something happens, never by polling.

It only reads; a run with a recorder and one without give the same ticks.
"""

from collections.abc import Sequence
from operator import sub
from typing import Protocol

from hetmem.monitor.outcome import Outcome
from hetmem.monitor.readings import Readings
from hetmem.monitor.table import Table


class Finished(Protocol):
    """What the recorder reads of a finished request."""

    id: int
    arrival_ps: int
    prompt: int
    output: int
    admitted_ps: int
    first_token_ps: int
    preemptions: int


class Recorder:
    """Keeps the tables of one run.

    Parameters
    ----------
    busy
        The busy ticks of the servers.
    trace
        Whether to keep a row per task.
    """

    def __init__(self, busy: Readings, trace: bool = False) -> None:
        self._readings = busy
        self._busy: Sequence[int] = [0] * len(busy.names)
        self.emitted = 0
        self.requests = Table(
            {
                "id": "q", "status": "s", "arrival_ps": "q", "admitted_ps": "q", "first_token_ps": "q",
                "finish_ps": "q", "prompt_tokens": "q", "output_tokens": "q", "preemptions": "q",
            }
        )  # fmt: skip
        self.steps = Table(
            {
                "step": "q", "start_ps": "q", "end_ps": "q", "prefill_tokens": "q", "decode_sequences": "q",
                "emitted_tokens": "q", "running": "q", "waiting": "q", "kv_blocks": "q",
            }
        )  # fmt: skip
        self.utilization = Table({"step": "q", "end_ps": "q", **dict.fromkeys(busy.names, "q")})
        self.tasks: Table | None = None
        if trace:
            self.tasks = Table({"step": "q", "server": "s", "task": "s", "start_ps": "q", "end_ps": "q", "bytes": "q"})

    def task(self, step: int, server: str, tag: str, start_ps: int, end_ps: int, n_bytes: int) -> None:
        """Note a task that ended."""
        assert self.tasks is not None
        self.tasks.append((step, server, tag, start_ps, end_ps, n_bytes))

    def step(self, outcome: Outcome, prefill_tokens: int, decode_sequences: int, emitted: int, kv_blocks: int) -> None:
        """Note a step that ended, and how long each server was busy since the step before."""
        view, end = outcome.view, outcome.end_ps
        self.emitted += emitted
        self.steps.append(
            (view.order, outcome.start_ps, end, prefill_tokens, decode_sequences, emitted, view.running,
             view.waiting, kv_blocks)
        )  # fmt: skip
        busy = self._readings.at(end)
        self.utilization.append((view.order, end, *map(sub, busy, self._busy)))
        self._busy = busy

    def finished(self, seq: Finished, now_ps: int) -> None:
        """Note a request whose last token has been emitted."""
        self.requests.append(
            (seq.id, "done", seq.arrival_ps, seq.admitted_ps, seq.first_token_ps, now_ps, seq.prompt, seq.output,
             seq.preemptions)
        )  # fmt: skip

    def dropped(
        self, request: int, arrival_ps: int, prompt: int, output: int, reason: str, preemptions: int = 0
    ) -> None:
        """Note a request that was not served to its end, and why; its unknown ticks are -1."""
        self.requests.append((request, f"dropped: {reason}", arrival_ps, -1, -1, -1, prompt, output, preemptions))
