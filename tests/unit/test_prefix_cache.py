"""Prefix reuse against an independent recount of a trace's hashes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

import hetmem
from hetmem.errors import ConfigError

HASHED = 512


def mooncake(path: Path, seed: int, requests: int = 60) -> list[dict[str, Any]]:
    """Write a trace of conversations that share beginnings, the last block of a prompt often not full."""
    draw, chains, rows, fresh = random.Random(seed), [[0]], [], 1
    for k in range(requests):
        chain = draw.choice(chains)[: draw.randint(0, 4)]
        for _ in range(draw.randint(0 if chain else 1, 3)):
            chain = [*chain, fresh]
            fresh += 1
        chains.append(chain)
        length = (len(chain) - 1) * HASHED + draw.choice([HASHED, 1, 17, 300])
        rows.append(
            {"timestamp": 40 * k, "input_length": length, "output_length": draw.randint(1, 40), "hash_ids": chain}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def recount(rows: list[dict[str, Any]]) -> int:
    known: set[int] = set()
    reused = 0
    for row in rows:
        for name in row["hash_ids"]:
            if name not in known:
                break
            reused += 1
        known |= set(row["hash_ids"])
    return reused


def serve(path: Path, **options: Any) -> hetmem.Run:
    given = {"max_num_seqs": 8, "gpu": "a100-sxm-80gb", "model": "llama3.1-8b", **options}
    return hetmem.simulate("resident", workload=hetmem.from_file(path), **given)


@pytest.mark.parametrize("seed", range(3))
def test_reused_blocks_are_those_of_a_recount(tmp_path: Path, seed: int) -> None:
    rows = mooncake(tmp_path / "t.jsonl", seed)
    run = serve(tmp_path / "t.jsonl")
    found = run.summary()["prefix_blocks"]
    assert found == {"asked": sum(len(row["hash_ids"]) for row in rows), "reused": recount(rows)}
    assert found["reused"] > 20
    kv = run.summary()["kv_blocks"]
    assert kv["allocated"] == kv["freed"] + kv["held"]
    assert kv["held"] > 0  # the known prefixes stay


def test_reuse_saves_exactly_the_whole_kv_blocks_of_known_prefixes(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1000, "output_length": 4, "hash_ids": [1, 2]},
        {"timestamp": 9000, "input_length": 1300, "output_length": 4, "hash_ids": [1, 3, 4]},  # 512 known
        {"timestamp": 18000, "input_length": 1000, "output_length": 4, "hash_ids": [1, 2]},  # 62 blocks of 16 known
        {"timestamp": 27000, "input_length": 512, "output_length": 4, "hash_ids": [1]},  # all but the last token
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, without = (serve(tmp_path / "t.jsonl", prefix_reuse=reuse) for reuse in (True, False))
    assert run.steps.column("prefill_tokens")[run.steps.column("prefill_tokens") > 0].tolist() == [1000, 788, 8, 1]
    assert run.summary()["prefix_blocks"] == {"asked": 8, "reused": 4}
    assert without.summary()["prefix_blocks"] is None
    assert without.steps.column("prefill_tokens").sum() == 3812
    assert run.makespan_s < without.makespan_s


@pytest.mark.parametrize("preempt", ["recompute", "swap"])
def test_a_small_cache_gives_prefixes_up_before_it_preempts(tmp_path: Path, preempt: str) -> None:
    rows = mooncake(tmp_path / "t.jsonl", 7)
    run = serve(tmp_path / "t.jsonl", kv_blocks=260, preempt=preempt)
    assert run.summary()["requests"] == {"in": len(rows), "done": len(rows), "dropped": 0}
    assert 0 < run.summary()["prefix_blocks"]["reused"] <= recount(rows)
    assert run.summary()["kv_blocks"]["peak"] <= 260


def test_a_block_size_that_does_not_divide_the_hashed_block_is_refused(tmp_path: Path) -> None:
    mooncake(tmp_path / "t.jsonl", 1)
    with pytest.raises(ConfigError, match="needs a divisor of 512, not 24"):
        serve(tmp_path / "t.jsonl", block_size=24)
