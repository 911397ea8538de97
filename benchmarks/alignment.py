"""Attention over the embedding table: our forms against others, above all the table repeated for every row.

    python benchmarks/alignment.py --width 1024 --pairs 3
    python benchmarks/alignment.py --width 4096 --pairs 1 --other-rows 1

Prints time and peak memory of a forward and a backward pass of the attention alone (no convolution), all three
modalities in one graph, 5 + 6 + 39 queries per row, one thread. Each measurement has a process of its own; the two of a
pair follow one another, in alternating order. On a CPU the time is the process's CPU time, which neighbours disturb
least, and the memory is resident memory beyond weights and table.
"""

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from macaw_lit.aligners.base import Aligner
from macaw_lit.aligners.macaw import MacawAligner
from macaw_lit.aligners.macaw_mha import MacawMHAAligner

VOCABULARY = 32_007
AGAINST = {
    "paper": "paper: Eq. 4 against the table repeated",
    "fused": "fused: Eq. 4 against the fused kernel",
    "mha": "mha: the original code's form against the table repeated",
}
TOKENS = {"image": 5, "audio": 6, "video": 39}


@dataclass(frozen=True)
class Case:
    """One measurement: which attention, whose form, at which sizes."""

    attention: str
    other: bool  # the form to compare with, not ours
    width: int
    rows: int
    heads: int
    device: str
    dtype: str


@dataclass(frozen=True)
class Cost:
    """Of one forward and backward pass."""

    seconds: float
    mib: float


class RepeatedPaper(nn.Module):
    """Eq. 4 as a batched matrix product: the whole table once per row."""

    def forward(self, queries: Tensor, table: Tensor) -> Tensor:
        copies = table.repeat(len(queries), 1, 1)
        return F.scaled_dot_product_attention(queries, copies, copies)


class FusedPaper(nn.Module):
    """Eq. 4 with all queries on one axis, as ours, but by the fused kernel."""

    def forward(self, queries: Tensor, table: Tensor) -> Tensor:
        keys = table[None, None]
        return F.scaled_dot_product_attention(queries.flatten(0, 1)[None, None], keys, keys)


class RepeatedMHA(nn.Module):
    """The original's call, except that the weights it averages and throws away are not asked for."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, add_bias_kv=True, add_zero_attn=True, batch_first=True)

    def forward(self, queries: Tensor, table: Tensor) -> Tensor:
        copies = table.repeat(len(queries), 1, 1)
        return self.attention(queries, copies, copies, need_weights=False)[0]


def build(case: Case) -> nn.Module:
    """The attention of one modality."""
    if case.other:
        others = {"paper": RepeatedPaper, "fused": FusedPaper, "mha": partial(RepeatedMHA, case.width, case.heads)}
        return others[case.attention]()
    sizes = {"dim_in": 1, "seq_len": 1, "dim_out": case.width, "kernel": None, "stride": None}
    aligner: Aligner = MacawMHAAligner(**sizes, heads=case.heads) if case.attention == "mha" else MacawAligner(**sizes)
    aligner.compress = nn.Identity()  # queries come as they are: the attention alone is measured
    return aligner


def step(parts: nn.ModuleDict, queries: dict[str, Tensor], table: Tensor) -> None:
    """Forward through all modalities, then backward."""
    torch.stack([parts[kind](queries[kind], table).float().square().mean() for kind in TOKENS]).sum().backward()


def measure(case: Case) -> Cost:
    """Run one step in this process, after a small one that wakes the libraries up."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    to = {"device": case.device, "dtype": getattr(torch, case.dtype)}
    parts = nn.ModuleDict({kind: build(case) for kind in TOKENS}).to(**to)
    queries = {
        kind: torch.randn(case.rows, count, case.width, **to, requires_grad=True) for kind, count in TOKENS.items()
    }
    table = torch.randn(VOCABULARY, case.width, **to).mul_(0.018).requires_grad_()
    step(parts, {kind: part[:1] for kind, part in queries.items()}, table[:16])
    for tensor in (table, *queries.values(), *parts.parameters()):
        tensor.grad = None
    if case.device == "cpu":
        before, start = _resident(), time.process_time()
        step(parts, queries, table)
        seconds = time.process_time() - start
        return Cost(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    step(parts, queries, table)
    torch.cuda.synchronize()
    return Cost(time.perf_counter() - start, (torch.cuda.max_memory_allocated() - before) / 2**20)


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def apart(case: Case) -> Cost:
    """`measure` in a fresh process, whose peak memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, case).result()


def compare(attention: str, arguments: argparse.Namespace) -> None:
    """Print every pair, then medians and the spread of the ratios."""
    sizes = {"width": arguments.width, "heads": arguments.heads, "device": arguments.device, "dtype": arguments.dtype}
    rows = arguments.other_rows or arguments.batch
    cases = {
        "ours": Case(attention, False, rows=arguments.batch, **sizes),
        "other": Case(attention, True, rows=rows, **sizes),
    }
    times, memories = [], []
    print(f"\n{AGAINST[attention]}, {VOCABULARY} x {arguments.width}, {arguments.dtype} on {arguments.device}")
    for pair in range(arguments.pairs):
        order = ("ours", "other") if pair % 2 == 0 else ("other", "ours")
        cost = {name: apart(cases[name]) for name in order}
        times.append(cost["other"].seconds * arguments.batch / rows / cost["ours"].seconds)
        memories.append(cost["other"].mib / cost["ours"].mib)
        told = "; ".join(f"{name} {cost[name].seconds:.2f} s, {cost[name].mib:.0f} MiB" for name in cases)
        print(f"  pair {pair + 1}: {told}; ratio of time {times[-1]:.2f}, of memory {memories[-1]:.2f}", flush=True)
    shared = (
        "" if rows == arguments.batch else f" (other form: {rows} of {arguments.batch} rows, time scaled, memory not)"
    )
    for name, ratios in (("time", times), ("memory", memories)):
        print(f"  ratio of {name}: median {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}{shared}")


def main() -> None:
    """Compare forms at one width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4, help="rows, each with an image, a sound and a video")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--other-rows", type=int, help="rows of the other form, where all do not fit into memory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--attention", nargs="+", default=["paper", "mha"], help="; ".join(AGAINST.values()), choices=list(AGAINST)
    )
    arguments = parser.parse_args()
    for attention in arguments.attention:
        compare(attention, arguments)


if __name__ == "__main__":
    main()
