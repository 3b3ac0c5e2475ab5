"""The groups of a machine's configuration that GPUs under the tile law and their PIM stacks have.

PAPI (ASPLOS 2025) and AttAcc (ASPLOS 2024) leave much open; what was decided is a field here, so that it can be set.
"""

from attrs import field, frozen
from attrs.validators import ge, in_, optional

from hetmem.hardware.roofline import fraction

FC_LAWS = ("tile", "flat")
ATTENTION_LAWS = ("rounds", "flat")
LEVELS = ("bank", "bank-group", "buffer")


@frozen(kw_only=True)
class TileConfig:
    """How the GPUs' tile law is applied.

    Attributes
    ----------
    corrected_energy
        Charge what the AttAcc simulator understates: registers by the byte, the context product, buffer moves by the
        bit.
    measured_all_reduce
        The link's measured all-reduce instead of that tool's 6.06 us per hop.
    whole_columns
        Round a matrix's columns per GPU up; the tool keeps fractions.
    compute_efficiency, memory_efficiency
        Achieved fractions of the peaks.
    overheads
        Factor on norms, activation and all-reduce, which PAPI's gain rests on.
    """

    corrected_energy: bool
    measured_all_reduce: bool
    whole_columns: bool
    compute_efficiency: float = fraction()
    memory_efficiency: float = fraction()
    overheads: float = field(default=1.0, validator=ge(0))


@frozen(kw_only=True)
class PimConfig:
    """The stacks that hold keys and values and attend to them.

    Attributes
    ----------
    units, level, power_limit
        Execution units per bank ("1P2B": one for two), where they sit, and whether all-bank activity is held inside
        the cube's power budget.
    stacks
        How many; heads spread over all of them.
    link, measured_link
        The link from the GPUs (``hetmem list devices``: attention_links), and whether it runs at its measured rate.
    """

    units: str
    level: str = field(default="bank", validator=in_(LEVELS))
    power_limit: bool = True
    stacks: int = field(validator=ge(1))
    link: str
    measured_link: bool


@frozen(kw_only=True)
class PapiConfig:
    """The stacks that hold weights, and what PAPI's paper leaves open.

    Attributes
    ----------
    fc_units, fc_stacks
        Execution units per bank of the stacks that hold the weights, and how many stacks.
    sustained
        Weight streams pay for row openings and refresh too.
    fc_law, attention_law
        ``tile`` or ``flat`` (perfect tiles); ``rounds`` of heads or ``flat`` (bytes over bandwidth).
    gqa_reuse
        Query heads of a group share a pass over their KV head where a bank has units for it.
    decision_s
        The host's time to decide where the next iteration runs.
    alpha, hysteresis
        Threshold in tokens per iteration (None: calibrated offline), and how far beyond it the side changes.
    """

    fc_units: str
    fc_stacks: int = field(validator=ge(1))
    sustained: bool
    fc_law: str = field(default="tile", validator=in_(FC_LAWS))
    attention_law: str = field(default="rounds", validator=in_(ATTENTION_LAWS))
    gqa_reuse: bool = False
    decision_s: float = field(default=0.0, validator=ge(0))
    alpha: float | None = field(default=None, validator=optional(ge(0)))
    hysteresis: float = field(default=0.0, validator=ge(0))


@frozen(kw_only=True)
class AttAccConfig:
    """The optimisations of AttAcc, and how its tool counts.

    Attributes
    ----------
    pipelining
        Overlap QKV, projection, transfers and attention head by head.
    co_processing
        PIM units stream a part of the feed-forward's weights.
    softmax_hidden
        The tool's account: softmax on the buffer die hides other work and takes no time itself.
    pooled_kv
        Keys and values may lie in any memory, as the tool counts capacity; otherwise in the AttAcc devices alone.
    """

    pipelining: bool
    co_processing: bool
    softmax_hidden: bool
    pooled_kv: bool = False
