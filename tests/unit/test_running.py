"""The running set counts its sequences together; here each is followed by itself."""

import random

import pytest

from hetmem.engine.running import RunningSet, Sequence


def sequence(number, prompt=1, output=100):
    return Sequence(number, number, 0, prompt, output)


def decode(running, seq, prefilled=None):
    """Admit ``seq`` and bring it to its first token."""
    running.admit(seq)
    seq.computed = seq.known if prefilled is None else prefilled
    seq.generated += 1
    running.start_decoding(seq)


def test_a_sequence_is_known_by_its_prompt_and_what_it_generated():
    seq = sequence(0, prompt=7)
    assert seq.known == 7
    seq.generated = 3
    assert seq.known == 10


def test_the_order_is_that_of_admission():
    running = RunningSet(4)
    for number in (5, 2, 9):
        running.admit(sequence(number))
    assert running.youngest().id == 9
    running.remove(running.youngest())
    assert running.youngest().id == 2
    assert len(running) == 2
    assert list(running.prefilling) == [5, 2]


def test_prefilling_sequences_hold_no_decode_state():
    running = RunningSet(4)
    running.admit(sequence(0, prompt=8))
    assert (running.decoding, running.kv_tokens, running.blocks_needed()) == (0, 0, 0)
    assert running.advance() == []


@pytest.mark.parametrize(("block", "computed"), [(1, 1), (4, 3), (4, 4), (4, 5), (16, 16)])
def test_a_block_is_needed_when_the_last_one_is_full(block, computed):
    running = RunningSet(block)
    decode(running, sequence(0, prompt=computed))
    for tokens in range(computed, computed + 3 * block):
        assert running.blocks_needed() == (1 if tokens % block == 0 else 0)
        assert running.kv_tokens == tokens
        running.advance()


def test_a_sequence_ends_with_its_last_token_and_leaves_nothing_behind():
    running = RunningSet(4)
    seq = sequence(0, prompt=6, output=4)
    decode(running, seq)
    assert [running.advance() for _ in range(3)] == [[], [], [seq]]
    assert (seq.generated, seq.computed, seq.blocks) == (4, 9, 3)
    assert (len(running), running.decoding, running.kv_tokens) == (0, 0, 0)
    assert all(running.blocks_needed() == 0 for _ in range(4) if running.advance() == [])


def test_a_sequence_that_was_removed_ends_when_it_comes_to_it_and_not_before():
    running = RunningSet(2)
    seq, other = sequence(0, output=5), sequence(1, output=20)
    decode(running, seq)
    decode(running, other)
    running.advance()
    running.remove(seq)
    assert (seq.generated, seq.computed, seq.joined) == (2, 2, -1)
    seq.computed = 0
    running.advance()
    running.advance()
    decode(running, seq)  # recomputed: its third token
    assert seq.generated == 3
    assert running.advance() == []  # here the entry of its first stay would have ended it
    assert running.advance() == [seq]
    assert list(running.order) == [1]


def test_the_aggregate_equals_a_count_over_each_sequence():
    rng = random.Random(5)
    running, mine, number = RunningSet(3), {}, 0
    for _ in range(2000):
        if rng.random() < 0.4:
            seq = sequence(number, rng.randint(1, 9), rng.randint(2, 12))
            number += 1
            decode(running, seq)
            mine[seq.id] = [seq.prompt, 1, seq.output]  # cached tokens, generated tokens, output
        if mine and rng.random() < 0.1:
            victim = running.youngest()
            running.remove(victim)
            assert [victim.computed, victim.generated] == mine.pop(victim.id)[:2]
            assert victim.blocks == -(-victim.computed // 3)
        assert running.decoding == len(running) == len(mine)
        assert running.kv_tokens == sum(cached for cached, _, _ in mine.values())
        assert running.blocks_needed() == sum(cached % 3 == 0 for cached, _, _ in mine.values())
        done = running.advance()
        for state in mine.values():
            state[0] += 1
            state[1] += 1
        assert sorted(seq.id for seq in done) == sorted(i for i, s in mine.items() if s[1] == s[2])
        for seq in done:
            assert seq.computed == mine.pop(seq.id)[0]
    assert number > 500
