"""How many tokens of each sequence a step verifies under speculative decoding (TLP)."""

from attrs import field, frozen, validators


@frozen
class SpeculationView:
    """What a speculation policy sees: sequences that decode."""

    decoding: int


@frozen
class FixedLength:
    """The same number of tokens in every step."""

    tlp: int = field(validator=validators.ge(1))

    def decide(self, view: SpeculationView) -> int:
        """Return the tokens to verify of each sequence."""
        return self.tlp


@frozen
class LevelTokens:
    """Longer drafts as the batch shrinks: about ``tokens`` per step in all, at most ``most`` of each sequence."""

    tokens: int = field(validator=validators.ge(1))
    most: int = field(validator=validators.ge(1))

    def decide(self, view: SpeculationView) -> int:
        """Return the tokens to verify of each sequence."""
        return max(1, min(self.most, self.tokens // max(1, view.decoding)))
