"""Where the points of a sweep run: in this process, in local processes, or on a Dask cluster; one interface.

A task that takes its worker down is tried again on a new one; after :data:`DEATHS` workers its future fails.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hetmem.errors import ConfigError, HetmemError

if TYPE_CHECKING:
    from distributed import Client

DEATHS = 3
CONNECT_S = 10.0


class WorkerDiedError(HetmemError):
    """A task that took several workers down: ``WorkerDiedError(deaths)``."""

    def __init__(self, deaths: int) -> None:
        super().__init__(deaths)
        self.deaths = deaths

    def __str__(self) -> str:
        return f"{self.deaths} workers died while they ran this"


class NoWorkerError(HetmemError):
    """A process that did not get as far as its first task: ``NoWorkerError()``."""

    def __str__(self) -> str:
        return "a worker could not start; a script that sweeps must do so under if __name__ == '__main__':"


class Executor(ABC):
    """Runs functions; a context manager that gives up what is outstanding when it is left by an exception."""

    @property
    @abstractmethod
    def width(self) -> int:
        """How many tasks run at once."""

    @abstractmethod
    def submit(self, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        """Return the future of ``function(*args)``."""

    def close(self) -> None:  # noqa: B027 - nothing to give back where nothing was taken
        """Give the workers back once everything submitted is done."""

    def abort(self) -> None:
        """Give the workers back at once; what runs is lost."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class SerialExecutor(Executor):
    """Runs each task in this process, when it is submitted."""

    width = 1

    def submit(self, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        """Return the future of ``function(*args)``, done already."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class ProcessExecutor(Executor):
    """Runs tasks in ``workers`` fresh processes, each a pool of its own.

    A pool whose worker dies fails every task that it holds. With a pool per worker that is the task which was
    running and no other; the pool is then built anew.

    Raises
    ------
    ConfigError
        When there is no worker.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._width = _processors() if workers is None else workers
        if self._width < 1:
            raise ConfigError("workers", f"expected at least 1, not {workers}")
        self._threads = ThreadPoolExecutor(self._width, thread_name_prefix="hetmem-worker")
        self._local = threading.local()
        self._lock = threading.Lock()
        self._pools: dict[ProcessPoolExecutor, int] = {}
        self._closing = False

    @property
    def width(self) -> int:
        """The number of processes."""
        return self._width

    def submit(self, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        """Return the future of ``function(*args)``; both must be picklable."""
        return self._threads.submit(self._run, function, args)

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        for _ in range(DEATHS):
            pool = self._pool()
            try:
                return pool.submit(function, *args).result()
            except BrokenProcessPool:
                self._drop()
                if self._closing:
                    break
        raise WorkerDiedError(DEATHS)

    def _pool(self) -> ProcessPoolExecutor:
        """Return the pool of this thread."""
        pool: ProcessPoolExecutor | None = getattr(self._local, "pool", None)
        if pool is None:
            pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare_worker)
            self._local.pool = pool
            try:
                pid = pool.submit(os.getpid).result()
            except BrokenProcessPool:
                raise NoWorkerError from None
            with self._lock:
                self._pools[pool] = pid
                if self._closing:
                    os.kill(pid, signal.SIGKILL)
        return pool

    def _drop(self) -> None:
        pool: ProcessPoolExecutor | None = getattr(self._local, "pool", None)
        self._local.pool = None
        if pool is not None:
            with self._lock:
                self._pools.pop(pool, None)
            pool.shutdown()

    def close(self) -> None:
        """Wait for everything submitted, then end the processes."""
        self._threads.shutdown()
        with self._lock:
            pools, self._pools = list(self._pools), {}
        for pool in pools:
            pool.shutdown()

    def abort(self) -> None:
        """End the processes at once."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closing = True
            pids = list(self._pools.values())
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.close()


def _processors() -> int:
    """Return the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare_worker() -> None:
    """Leave interrupts to the parent, and end with it: a killed parent cannot tell its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


class DaskExecutor(Executor):
    """Runs tasks on the workers of a Dask cluster; each must have hetmem, in the same version."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        # Twice the same call is two calls: a run must not get another's result for being alike.
        self._executor = client.get_executor(pure=False)  # type: ignore[no-untyped-call]
        self._owned = False

    @classmethod
    def connect(cls, address: str) -> "DaskExecutor":
        """Return an executor on the cluster whose scheduler listens at ``address``.

        Raises
        ------
        ConfigError
            When Dask is not installed, or nothing answers.
        """
        try:
            from distributed import Client
        except ImportError:
            raise ConfigError("dask", "is not installed; pip install 'hetmem[dask]'") from None
        try:
            client = Client(address, timeout=CONNECT_S)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise ConfigError("dask", f"no scheduler answers at {address}: {error}") from None
        made = cls(client)
        made._owned = True
        return made

    @property
    def width(self) -> int:
        """The threads of all workers there are now, at least 1."""
        return max(1, sum(self._client.nthreads().values()))  # type: ignore[no-untyped-call]

    def submit(self, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        """Return the future of ``function(*args)``; both must be picklable."""
        future: Future[Any] = self._executor.submit(function, *args)
        return future

    def close(self) -> None:
        """Wait for everything submitted, and leave the cluster as it is."""
        self._executor.shutdown()
        if self._owned:
            self._client.close()  # type: ignore[no-untyped-call]

    def abort(self) -> None:
        """Take back what has not started."""
        self._executor.shutdown(wait=False)
        if self._owned:
            self._client.close()  # type: ignore[no-untyped-call]
