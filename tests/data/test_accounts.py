"""Accounts of several processes and runs, added up: the same whoever counted what."""

import itertools

import torch

from macaw_lit.data.accounts import Accounts
from macaw_lit.types import Batch, Rejection


def counted(*skipped: str) -> Accounts:
    accounts = Accounts()
    rejections = tuple(Rejection("missing", place, "gone", "mine") for place in skipped)
    ids = torch.zeros(1, 1, dtype=torch.long)
    accounts.count(Batch(ids, ids.bool(), None, {}, ["a"], sources=["mine"], skipped=rejections))
    return accounts


def test_the_sum_is_the_same_in_any_order() -> None:
    """So that two processes, or a run in two parts, leave the ledger that one leaves."""
    parts = [counted("9"), counted("3", "5"), counted(), counted("7")]
    sums = []
    for order in itertools.permutations(parts):
        whole = Accounts()
        for part in order:
            whole.add(part.as_json())
        sums.append(whole.as_json())
    account = {"seen": 8, "used": 4, "truncated": 0, "skipped": {"missing": 4}, "first": "3: gone"}
    assert sums == [{"0": {"mine": account}}] * 24
