"""A small decoder-only transformer with pre-norm and without dropout.

Nothing in it is random after construction, so every strategy computes the same function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import TrainConfig


class Attention(nn.Module):
    """Causal self-attention over `[batch, time, width]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Without bias: softmax cancels the key's, so Adam would only amplify rounding errors.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attends each position to itself and those before it."""
        batch, time, width = x.shape
        split = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        merged: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return merged


class Block(nn.Module):
    """Attention and MLP, each with a layer norm before and a residual around it.

    With `checkpointing` it keeps only its input and recomputes the rest in backward. That happens
    inside `forward`, so that wrappers and hooks on a block's call (FSDP gathers its parameters
    there) run once in forward and once in backward, as without it.
    """

    def __init__(self, width: int, heads: int, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[batch, time, width]` to the same shape."""
        if self.checkpointing and torch.is_grad_enabled():
            # Nothing in it is random, so no RNG state has to be saved.
            kept: Tensor = checkpoint(
                self._compute, x, use_reentrant=False, preserve_rng_state=False
            )
            return kept
        return self._compute(x)

    def _compute(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        result: Tensor = x + self.mlp(self.norm_mlp(x))
        return result


class LanguageModel(nn.Module):
    """Predicts the next character; `footprint.parameter_count` computes its size."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        width = config.d_model
        self.token = nn.Embedding(config.vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(config.seq_len, width))
        self.blocks = nn.Sequential(
            *(
                Block(width, config.heads, checkpointing=config.activation_checkpointing)
                for _ in range(config.layers)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens `[batch, time]` to logits `[batch, time, vocabulary]`."""
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def build_model(config: TrainConfig) -> LanguageModel:
    """The model with the weights determined by `config.seed`; the global generator is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LanguageModel(config)


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats over all positions of all samples, in float32.

    Computed on the logits' device; the targets are moved there.
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().to(logits.device))
