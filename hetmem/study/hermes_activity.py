"""What the synthetic activity behind Hermes shows: the published anchors, met together, and the drift of the hot set.

The anchors are what the firing law is solved for; that one activity has them all is what its measurement tells. The
drift is imposed by nothing.
"""

from attrs import evolve, frozen

from hetmem import catalog
from hetmem.model import load_model
from hetmem.model.activation import NeuronBlock, activation_model, count_fired
from hetmem.model.activity_config import BLOCKS, activity_config, neuron_counts, neurons
from hetmem.model.activity_stats import MeasuredSparsity, measure
from hetmem.model.bits import unpack
from hetmem.model.sparsity import block_sparsity, sparsity_anchors
from hetmem.policy.predictor import HotDrift, StateTracker
from hetmem.study.reproduce import Row, verdict

TOKENS = 128  # of prompt and of output
GROUP = 64  # neurons taken as one: the anchors do not depend on it, the time does
#: The name of each, the field of the measurement, the catalogue's key, what it is, how near it must come.
ANCHORS = (
    ("similarity-adjacent", "adjacent", "adjacent_similarity", "active MLP neurons active one token on", 0.03),
    ("similarity-distant", "distant", "distant_similarity", "active MLP neurons active 12 to 32 tokens on", 0.05),
    ("block-share", "block_share", "mlp_block_share", "MLP neurons with 80 % of a layer's activations, median", 0.03),
    ("model-share", "model_share", "mlp_model_share", "MLP neurons with 80 % of all layers' activations", 0.03),
)
DRIFT = 0.10  # how near it should come


@frozen
class Shown:
    """What the activity of one model shows: that of its MLP, and the drift by kind of block."""

    model: str
    mlp: MeasuredSparsity
    drift: dict[str, float]


def shown(model: str) -> Shown:
    """Measure the activity of ``model``; some seconds."""
    return Shown(model, measured_anchors(model, "mlp"), hot_drift(model))


def measured_anchors(model: str, block: str) -> MeasuredSparsity:
    """Return the statistics of one kind of block of the whole model."""
    spec = load_model(model)
    sparsity = block_sparsity(sparsity_anchors(model), block)
    built = activation_model(NeuronBlock(sparsity, spec.n_layers, neuron_counts(spec)[block], GROUP), seed=1)
    similar = measure(built, seed=5, n_sequences=60, n_tokens=48)
    # sequences differ in their rates, so frequencies need far more of them than similarities
    shares = measure(built, seed=6, n_sequences=1500, n_tokens=4, distances=(1,))
    return evolve(similar, density=shares.density, block_share=shares.block_share, model_share=shares.model_share)


def hot_drift(model: str) -> dict[str, float]:
    """Return the share of the neurons hot when decoding starts that cool at least once, by kind of block."""
    known = neurons(activity_config(model), load_model(model), seed=1)
    sequence, tracker = known.source(0), StateTracker()
    tracker.start({block: fired / TOKENS for block, fired in count_fired(sequence, TOKENS).items()})
    drifts = {block: HotDrift(tracker.hot(block)) for block in BLOCKS}
    for _ in range(TOKENS):
        words = sequence.next_token()
        tracker.observe({block: unpack(words[block], known.n_units[block]) for block in BLOCKS})
        for block, drift in drifts.items():
            drift.observe(tracker.hot(block))
    return {block: float(drift.share) for block, drift in drifts.items()}


def activity_rows(found: Shown) -> list[Row]:
    """Return the anchors of the MLP, and the drift, beside what was published."""
    wanted = block_sparsity(sparsity_anchors(found.model), "mlp")
    facts = catalog.entry("sparsity", found.model).facts
    rows = []
    for name, statistic, key, metric, limit in ANCHORS:
        value, paper = getattr(found.mlp, statistic), getattr(wanted, statistic)
        limits = _around(paper, limit)
        rows.append(
            Row(quantity=f"activity-{name}", model=found.model, metric=f"share of the {metric}",
                unit="1", paper=paper, as_published=value, tolerance=limits,
                verdict=verdict(value, paper, limits, fitted=True), note=f"{facts[key].grade}: {facts[key].source}")
        )  # fmt: skip
    paper, of = sparsity_anchors(found.model).hot_drift, facts["hot_drift"]
    limits = _around(paper, DRIFT)
    for block, value in found.drift.items():
        rows.append(
            Row(quantity="hot-drift", system="hermes", model=found.model, batch=1,
                metric=f"share of the {block} neurons hot when decoding starts that cool within {TOKENS} tokens",
                unit="1", paper=paper, as_published=value, tolerance=limits, verdict=verdict(value, paper, limits),
                note=f"{of.grade}: {of.source}; reported, not gated: chance alone cools a neuron here, its rate in a "
                     "sequence stays")
        )  # fmt: skip
    return rows


def _around(paper: float, limit: float) -> tuple[float, float]:
    return round(paper - limit, 3), round(paper + limit, 3)
