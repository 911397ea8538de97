"""What every aligner makes of different inputs before it has learned anything, on a table like LLaMA's.

    python benchmarks/collapse.py

Four random pictures as CLIP ViT-B/16 would show them (196 positions of width 512, standard normal), the original's
convolution, 32 007 random embeddings of width 4096 with a standard deviation of 0.018. Prints a Markdown table:

    entropy     of the attention over the table, as a share of the most it can be
    cosine      between the soft tokens of different pictures
    norm        root mean square of the soft tokens by that of the embeddings
    difference  root mean square of the difference between two pictures' tokens after LLaMA's first RMSNorm (ε 1e-6),
                which is what its first layer reads; between two words it is √2
    gradient    norm of the gradient in the aligner by that in aligner and LLM together, where the LLM is a LLaMA of
                this width with one layer and fresh weights, which reads the soft tokens and 16 random words
    to encoder  norm of the gradient that reaches the features, by the same
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from macaw_lit.aligners.base import Aligner
from macaw_lit.aligners.linear import LinearAligner
from macaw_lit.aligners.macaw import MacawAligner
from macaw_lit.aligners.macaw_mha import MacawMHAAligner
from macaw_lit.aligners.mlp import MLPAligner
from macaw_lit.aligners.perceiver import PerceiverAligner
from macaw_lit.health import alignment_health

VOCABULARY, STD = 32_007, 0.018


def warmer(factor: float) -> Callable[..., Aligner]:
    """`qk_norm` with another temperature than 1 to begin with."""

    def build(**sizes: int) -> Aligner:
        aligner = MacawAligner(**sizes, qk_norm=True)
        assert aligner.log_temperature is not None
        aligner.log_temperature.data += torch.tensor(factor).log()
        return aligner

    return build


ALIGNERS: dict[str, Callable[..., Aligner]] = {
    "`macaw` (Eq. 4 exactly)": MacawAligner,
    "`macaw_mha`, 16 heads (original code)": partial(MacawMHAAligner, heads=16),
    "`macaw_mha`, 8 heads": partial(MacawMHAAligner, heads=8),
    "`match_scale`": partial(MacawAligner, match_scale=True),
    "`residual`": partial(MacawAligner, residual=True),
    "`residual`, `match_scale`": partial(MacawAligner, residual=True, match_scale=True),
    "`qk_norm` (temperature 1)": partial(MacawAligner, qk_norm=True),
    "`qk_norm`, temperature 2": warmer(2.0),
    "`qk_norm`, temperature 4": warmer(4.0),
    "`qk_norm`, `match_scale` (`macaw_matched`)": partial(MacawAligner, qk_norm=True, match_scale=True),
    "`qk_norm`, `residual`, `match_scale`": partial(MacawAligner, qk_norm=True, residual=True, match_scale=True),
    "`linear`": LinearAligner,
    "`mlp`": MLPAligner,
    "`perceiver`": PerceiverAligner,
}


def difference(tokens: Tensor) -> float:
    """Mean over pairs of items of the distance that LLaMA's first layer sees, per channel."""
    seen = F.rms_norm(tokens, tokens.shape[-1:], eps=1e-6)
    pairs = [(seen[one] - seen[other]).square().mean().sqrt() for one, other in combinations(range(len(seen)), 2)]
    return float(torch.stack(pairs).mean())


def gradient_shares(aligner: Aligner, llm: LlamaForCausalLM, features: Tensor) -> tuple[float, float]:
    """How much of the gradient of the next-word loss arrives in the aligner, and how much at the encoder's door."""
    words, features = llm.get_input_embeddings(), features.clone().requires_grad_()
    tokens = aligner(features, words.weight)
    text = torch.randint(VOCABULARY, (len(features), 16))
    labels = torch.cat([text.new_full(tokens.shape[:2], -100), text], 1)
    llm(inputs_embeds=torch.cat([tokens, words(text)], 1), labels=labels).loss.backward()
    gradients = [[parameter.grad for parameter in part.parameters()] for part in (aligner, llm)]
    whole = nn.utils.get_total_norm(gradients[0] + gradients[1])
    llm.zero_grad()
    return float(nn.utils.get_total_norm(gradients[0]) / whole), float(features.grad.norm() / whole)


def build_llm(width: int) -> LlamaForCausalLM:
    """One layer of LLaMA-7B's proportions, with embeddings of its spread."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 11_008 // 4096,
        num_hidden_layers=1,
        num_attention_heads=width // 128,
    )
    llm = LlamaForCausalLM(config)
    nn.init.normal_(llm.get_input_embeddings().weight, std=STD)
    return llm


def main() -> None:
    """Print the table, a row per aligner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    llm = build_llm(arguments.width)
    table = llm.get_input_embeddings().weight
    features = torch.randn(4, 196, 512)
    sizes = {"dim_in": 512, "seq_len": 196, "dim_out": arguments.width, "kernel": 48, "stride": 36}
    print("| aligner | entropy | cosine | norm | difference | gradient | to encoder |\n|---|---|---|---|---|---|---|")
    for name, build in ALIGNERS.items():
        torch.manual_seed(arguments.seed + 1)  # the same convolution and the same words for all
        aligner = build(**sizes)
        share, reached = gradient_shares(aligner, llm, features)
        with torch.no_grad():
            health = alignment_health(aligner, features, table)
            apart = difference(aligner(features, table))
        entropy = f"{health['entropy']:.7f}" if "entropy" in health else ""
        told = [f"{health['cosine']:.5f}", *(f"{x:.2g}" for x in (health["norm_ratio"], apart, share, reached))]
        print(f"| {name} | {entropy} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
