"""MoE-Lightning: the batch, placement and pipeline of CGOPipe.

Modelled: the policy search of MoE-Lightning (ASPLOS 2025, arXiv 2411.11217) over batch N, micro-batch mu,
attention on GPU or CPU, FFN on GPU or CPU, share of weights and of KV in GPU memory, by its hierarchical
roofline: one layer of decode takes ``max(link, CPU, GPU)``, and the search takes the most tokens per second
that fits both memories. Each unit's time is ``max(flops / peak, bytes / bandwidth)`` per kernel. And the
order of the pipeline: while the GPU runs the post-attention part of micro-batch j, the CPU runs the attention
of j + 1 and the link carries one page of the next layer's weights; the GPU part before attention runs two
micro-batches ahead (our reading of the dependencies).

Ignored: prefill, launch overheads, unequal contexts in a batch.
"""

from itertools import product

from attrs import field, frozen, validators

from hetmem.errors import ConfigError, UnsupportedError

_POSITIVE = validators.gt(0)
_NOT_NEGATIVE = validators.ge(0)


@frozen
class Side:
    """A processor with its memory: peak FLOP/s, bandwidth in bytes/s, and bytes of capacity."""

    flops: float = field(validator=_POSITIVE)
    bytes_per_s: float = field(validator=_POSITIVE)
    capacity_bytes: float = field(validator=_POSITIVE)

    def kernel_s(self, flops: float, moved_bytes: float) -> float:
        """Return the roofline time of one kernel."""
        return max(flops / self.flops, moved_bytes / self.bytes_per_s)


@frozen
class HrmView:
    """Machine, model and load, all per layer of decode where not said otherwise.

    Parameters
    ----------
    gpu, cpu : Side
        The two processors.
    link_bytes_per_s : float
        Host to GPU.
    n_layers : int
        Layers of the model.
    dense_bytes, expert_bytes : float
        Weights outside the experts (projections) and of all experts.
    touched_share : float
        Share of the experts' bytes that one micro-batch reads (1 for large micro-batches).
    dense_flops, expert_flops, attention_flops : float
        Per token: projections, the experts it is routed to, attention over its context.
    kv_bytes : float
        Per sequence: keys and values of its context.
    hidden_bytes : float
        Per token: one hidden state.
    """

    gpu: Side
    cpu: Side
    link_bytes_per_s: float = field(validator=_POSITIVE)
    n_layers: int = field(validator=_POSITIVE)
    dense_bytes: float = field(validator=_NOT_NEGATIVE)
    expert_bytes: float = field(validator=_NOT_NEGATIVE)
    touched_share: float = field(validator=(_NOT_NEGATIVE, validators.le(1)))
    dense_flops: float = field(validator=_NOT_NEGATIVE)
    expert_flops: float = field(validator=_NOT_NEGATIVE)
    attention_flops: float = field(validator=_NOT_NEGATIVE)
    kv_bytes: float = field(validator=_NOT_NEGATIVE)
    hidden_bytes: float = field(validator=_NOT_NEGATIVE)


@frozen
class HrmPolicy:
    """One point of the search: N, mu, sides of attention and FFN, shares of weights and KV in GPU memory."""

    batch: int
    micro_batch: int
    gpu_attention: bool
    gpu_ffn: bool
    weights_on_gpu: float
    kv_on_gpu: float

    def gpu_bytes(self, view: HrmView) -> float:
        """Return the GPU memory used: what stays, two layers' streamed weights, a micro-batch's states."""
        layer = view.dense_bytes + (view.expert_bytes if self.gpu_ffn else 0.0)
        resident = view.n_layers * (self.weights_on_gpu * layer + self.kv_on_gpu * self.batch * view.kv_bytes)
        streamed_kv = (1 - self.kv_on_gpu) * self.micro_batch * view.kv_bytes if self.gpu_attention else 0.0
        return resident + 2 * (1 - self.weights_on_gpu) * layer + streamed_kv + self.micro_batch * view.hidden_bytes

    def cpu_bytes(self, view: HrmView) -> float:
        """Return the host memory used: weights and KV that the GPU does not hold, and hidden states."""
        held = self.weights_on_gpu * (view.dense_bytes + (view.expert_bytes if self.gpu_ffn else 0.0))
        weights = view.dense_bytes + view.expert_bytes - held
        kv = (1 - self.kv_on_gpu) * self.batch * view.kv_bytes
        return view.n_layers * (weights + kv) + self.batch * view.hidden_bytes

    def fits(self, view: HrmView) -> bool:
        """Return whether both memories hold it."""
        return self.gpu_bytes(view) <= view.gpu.capacity_bytes and self.cpu_bytes(view) <= view.cpu.capacity_bytes

    def times_s(self, view: HrmView) -> tuple[float, float, float]:
        """Return the times (link, CPU, GPU) of one layer for the whole batch."""
        n, mu = self.batch, self.micro_batch
        rounds = n / mu
        gpu_s = rounds * view.gpu.kernel_s(mu * view.dense_flops, view.dense_bytes)
        moved = (1 - self.weights_on_gpu) * view.dense_bytes
        cpu_s = 0.0
        if self.gpu_attention:
            gpu_s += rounds * view.gpu.kernel_s(mu * view.attention_flops, mu * view.kv_bytes)
            moved += (1 - self.kv_on_gpu) * n * view.kv_bytes
        else:
            cpu_s += rounds * view.cpu.kernel_s(mu * view.attention_flops, mu * view.kv_bytes)
            moved += n * view.hidden_bytes
        touched = view.touched_share * view.expert_bytes
        if self.gpu_ffn:
            gpu_s += rounds * view.gpu.kernel_s(mu * view.expert_flops, touched)
            moved += (1 - self.weights_on_gpu) * view.expert_bytes
        else:
            cpu_s += rounds * view.cpu.kernel_s(mu * view.expert_flops, touched)
            moved += n * view.hidden_bytes
        return moved / view.link_bytes_per_s, cpu_s, gpu_s

    def tokens_per_s(self, view: HrmView) -> float:
        """Return the decode rate: a token per sequence, every layer at the pace of its slowest resource."""
        return self.batch / (view.n_layers * max(self.times_s(view)))


@frozen
class HrmSearch:
    """Exhaustive search on a grid: powers of two for batches, ``steps`` equal steps for shares.

    Parameters
    ----------
    max_batch : int
        Largest batch tried.
    steps : int
        Steps of each share from 0 to 1.
    batch : int, optional
        The one batch to try, where the load decides it.
    """

    max_batch: int = field(default=4096, validator=_POSITIVE)
    steps: int = field(default=10, validator=_POSITIVE)
    batch: int | None = field(default=None, validator=validators.optional(_POSITIVE))

    def candidates(self) -> tuple[HrmPolicy, ...]:
        """Return every point of the grid; KV is in GPU memory only where attention runs on the GPU."""
        most = self.batch or self.max_batch
        sizes = [1 << i for i in range(most.bit_length())]
        shares = [i / self.steps for i in range(self.steps + 1)]
        return tuple(
            HrmPolicy(batch, micro, attention, ffn, weights, kv)
            for batch, micro, attention, ffn in product(
                [self.batch] if self.batch else sizes, sizes, (False, True), (False, True)
            )
            if micro <= batch
            for weights, kv in product(shares, shares if attention else (0.0,))
        )

    def decide(self, view: HrmView) -> HrmPolicy:
        """Return the fitting policy of the highest rate; of equals the one that keeps its three resources least busy.

        Raises
        ------
        UnsupportedError
            When no point of the grid fits both memories.
        """
        best: tuple[tuple[float, float], HrmPolicy] | None = None
        for policy in self.candidates():
            if policy.fits(view):
                times = policy.times_s(view)
                merit = (policy.batch / max(times), -sum(times))
                if best is None or merit > best[0]:
                    best = merit, policy
        if best is None:
            weights = view.n_layers * (view.dense_bytes + view.expert_bytes)
            raise UnsupportedError(
                "moe-lightning",
                f"no policy fits {weights / 1e9:.1f} GB of weights into {view.gpu.capacity_bytes / 1e9:.1f} "
                f"GB of GPU and {view.cpu.capacity_bytes / 1e9:.1f} GB of host memory",
            )
        return best[1]


Work = tuple[int, int]


@frozen
class Slot:
    """What runs at once, each a (layer, micro-batch), or None at either end of the step.

    ``gpu_post`` then ``gpu_pre`` share the GPU; ``page`` is a (layer, page of its weights).
    """

    gpu_post: Work | None
    gpu_pre: Work | None
    cpu_attention: Work | None
    page: Work | None


def pipeline(n_layers: int, micro_batches: int) -> tuple[Slot, ...]:
    """Return CGOPipe's slots for one decode step, in order.

    A layer's weights are cut into a page per micro-batch. The last layer's slots carry the pages of the
    first, for the step after.

    Raises
    ------
    ConfigError
        When there are fewer than two micro-batches: nothing can overlap.
    """
    if n_layers < 1:
        raise ConfigError("n_layers", f"expected at least 1, not {n_layers}")
    if micro_batches < 2:
        raise ConfigError("micro_batches", f"expected at least 2, so that CPU and GPU overlap, not {micro_batches}")
    total = n_layers * micro_batches

    def work(position: int) -> Work | None:
        return divmod(position, micro_batches) if 0 <= position < total else None

    # Two slots fill the pipeline.
    slots = []
    for position in range(-2, total):
        layer, index = divmod(position, micro_batches)
        page = ((layer + 1) % n_layers, index) if position >= 0 else None
        slots.append(Slot(work(position), work(position + 2), work(position + 1), page))
    return tuple(slots)
