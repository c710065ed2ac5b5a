"""The input of a prediction: a model's tensors, the devices, and how they are trained."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT_BYTES = 4
TOKEN_BYTES = 8
"""Tokens are copied as int64."""

ADAM_COUNTER_BYTES = 4
"""torch's Adam keeps its step count as one float32 per parameter tensor."""

OPTIMIZERS = ("sgd", "adam", "adamw")
PRECISIONS = ("fp32", "bf16-mixed")


@dataclass(kw_only=True, slots=True, frozen=True)
class ParameterTensor:
    """One parameter tensor.

    Attributes:
        shape: Its sizes.
        unit: Index of the unit it is gathered with if parameters are sharded: 0 is the root
            (embeddings, last norm, head), then one per block.
    """

    shape: tuple[int, ...]
    unit: int

    @property
    def elements(self) -> int:
        """Product of the sizes."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(kw_only=True, slots=True, frozen=True)
class Setup:
    """A training configuration as the theory needs it.

    Attributes:
        tensors: The model's parameters, in the order of `model.parameters()`.
        devices: N.
        batch: Samples of a micro-batch over all devices.
        seq_len: Tokens per sample.
        width: Elements per token between two blocks.
        vocabulary: Logits per token.
        optimizer: One of `OPTIMIZERS`; sgd has no momentum, and so no state.
        precision: One of `PRECISIONS`; with `bf16-mixed` parameters, gradients and optimizer state
            stay float32, and compute is in bfloat16.
        grad_accum: Micro-batches per step.
        reshard_after_forward: FSDP2 frees a unit's gathered parameters after its forward.
    """

    tensors: tuple[ParameterTensor, ...]
    devices: int
    batch: int
    seq_len: int
    width: int
    vocabulary: int
    optimizer: str = "adam"
    precision: str = "fp32"
    grad_accum: int = 1
    reshard_after_forward: bool = True

    @property
    def elements(self) -> int:
        """Ψ: number of elements in all parameters."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def param_bytes(self) -> int:
        """P: bytes of all parameters, and of all gradients."""
        return FLOAT_BYTES * self.elements

    @property
    def compute_bytes(self) -> int:
        """Bytes per element in forward and backward."""
        return 2 if self.precision == "bf16-mixed" else FLOAT_BYTES

    def optimizer_bytes(self, elements: int, tensors: int) -> int:
        """Optimizer state of `elements` parameters in `tensors` tensors."""
        if self.optimizer == "sgd":
            return 0
        return 2 * FLOAT_BYTES * elements + ADAM_COUNTER_BYTES * tensors
