"""Collectives that libraries issue themselves, and what for.

A framework is recognized by the frames that a call is issued under, never by the shape of the call.
Each entry is a function, by file and name, in which nothing else is communicated; otherwise the
entry states further conditions. `docs/frameworks.md` says what each library adds, and the tests
that verify it. Calls of unknown functions are reported by package and function only.
"""

from __future__ import annotations

import os
from types import CodeType
from typing import NamedTuple


class Purpose(NamedTuple):
    """What a function communicates.

    Attributes:
        framework: Common name of the framework.
        text: What for, in a few words.
        within: Names of functions, one of which must be the next inner frame, if the function also
            calls other code. Empty: any.
        native: Only calls that C++ issues directly under this frame; other calls under it have no
            purpose.
        op: With `native`, the kind of collective.
        dtype: With `native`, the element type.
    """

    framework: str
    text: str
    within: frozenset[str] = frozenset()
    native: bool = False
    op: str = ""
    dtype: str = ""


def _native(text: str, op: str, dtype: str) -> Purpose:
    return Purpose("DDP", text, native=True, op=op, dtype=dtype)


def _inside(framework: str, text: str, *within: str) -> Purpose:
    return Purpose(framework, text, frozenset(within))


_DDP = "torch/nn/parallel/distributed.py"
_JOIN = "torch/distributed/algorithms/join.py"
_ZERO = "torch/distributed/optim/zero_redundancy_optimizer.py"
_FSDP2 = "torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py"
_FSDP1 = "torch/distributed/fsdp/"
_DCP = "torch/distributed/checkpoint/"
_LIGHTNING = "lightning/pytorch/"
_RESULT = f"{_LIGHTNING}trainer/connectors/logger_connector/result.py"
_ACCELERATE = "accelerate/"
_TRAINER = "transformers/trainer.py"
_ENGINE = "deepspeed/runtime/"

PURPOSES = {
    # -- torch -------------------------------------------------------------------------------------
    ("torch/autograd/graph.py", "_engine_run_backward"): _native(
        "which parameters were used", "all_reduce", "int32"
    ),
    (_DDP, "_pre_forward"): _native("rebuilt buckets' layout", "broadcast", "int32"),
    (_DDP, "_sync_module_buffers"): Purpose("DDP", "buffers"),
    ("torch/distributed/utils.py", "_verify_param_shape_across_processes"): Purpose(
        "DDP", "shapes of parameters, at start"
    ),
    (_DDP, "__init__"): Purpose("DDP", "parameters and buffers, at start"),
    (_DDP, "_check_global_requires_backward_grad_sync"): Purpose(
        "join()", "whether gradients are due"
    ),
    (_DDP, "_match_all_reduce_for_bwd_pass"): Purpose(
        "join()", "zero gradients of a rank that has joined"
    ),
    (_DDP, "_sync_final_model"): Purpose("join()", "the final model"),
    (_JOIN, "notify_join_context"): Purpose("join()", "ranks that still have input"),
    (_JOIN, "_get_num_nonjoined_procs"): Purpose("join()", "ranks that still have input"),
    (_ZERO, "_sync_params"): Purpose("ZeroRedundancyOptimizer", "updated parameters"),
    (_ZERO, "consolidate_state_dict"): Purpose("ZeroRedundancyOptimizer", "state, consolidated"),
    (_FSDP2, "foreach_all_gather"): Purpose("fully_shard", "parameters"),
    (_FSDP2, "foreach_reduce"): Purpose("fully_shard", "gradients"),
    (f"{_FSDP1}_flat_param.py", "_all_gather_flat_param"): Purpose("FSDP", "parameters"),
    (f"{_FSDP1}_runtime_utils.py", "_reduce_grad"): Purpose("FSDP", "gradients"),
    (f"{_FSDP1}fully_sharded_data_parallel.py", "clip_grad_norm_"): Purpose(
        "FSDP", "norm of the gradients"
    ),
    ("torch/nn/utils/clip_grad.py", "_get_total_norm"): Purpose(
        "clip_grad_norm_", "norm of the gradients"
    ),
    (f"{_DCP}state_dict_saver.py", "_save_state_dict"): Purpose("checkpoint", "plan of a save"),
    (f"{_DCP}state_dict_loader.py", "_load_state_dict"): Purpose("checkpoint", "plan of a load"),
    ("torch/distributed/_state_dict_utils.py", "_gather_state_dict"): Purpose(
        "checkpoint", "the full state dict"
    ),
    # -- Lightning ---------------------------------------------------------------------------------
    (f"{_LIGHTNING}loops/training_epoch_loop.py", "_broadcast_sigterm_tensor"): Purpose(
        "Lightning", "SIGTERM flag"
    ),
    (_RESULT, "update"): _inside("Lightning", "log(sync_dist=True) of a step", "reduce"),
    (_RESULT, "compute"): _inside("Lightning", "logged mean of an epoch", "reduce"),
    (f"{_LIGHTNING}callbacks/model_checkpoint.py", "file_exists"): Purpose(
        "Lightning", "whether a checkpoint's file is there"
    ),
    (f"{_LIGHTNING}callbacks/model_checkpoint.py", "setup"): _inside(
        "Lightning", "where checkpoints go", "broadcast"
    ),
    (f"{_LIGHTNING}trainer/trainer.py", "save_checkpoint"): _inside(
        "Lightning", "end of a checkpoint", "barrier"
    ),
    (f"{_LIGHTNING}trainer/trainer.py", "log_dir"): _inside(
        "Lightning", "where logs go", "broadcast"
    ),
    (f"{_LIGHTNING}trainer/trainer.py", "_run_stage"): _inside("Lightning", "set-up", "barrier"),
    (f"{_LIGHTNING}trainer/call.py", "_call_setup_hook"): _inside("Lightning", "set-up", "barrier"),
    (f"{_LIGHTNING}trainer/connectors/checkpoint_connector.py", "resume_end"): _inside(
        "Lightning", "set-up", "barrier"
    ),
    (f"{_LIGHTNING}loops/fit_loop.py", "setup_data"): _inside(
        "Lightning", "the loader's set-up", "barrier"
    ),
    (f"{_LIGHTNING}loops/evaluation_loop.py", "setup_data"): _inside(
        "Lightning", "the loader's set-up", "barrier"
    ),
    (f"{_LIGHTNING}utilities/data.py", "has_len_all_ranks"): Purpose(
        "Lightning", "the loader's length"
    ),
    # -- accelerate --------------------------------------------------------------------------------
    (f"{_ACCELERATE}data_loader.py", "_fetch_batches"): _inside(
        "accelerate", "dispatch_batches: what is in the batch", "broadcast_object_list"
    ),
    (f"{_ACCELERATE}data_loader.py", "__iter__"): _inside(
        "accelerate", "dispatch_batches: the whole batch", "wrapper", "broadcast"
    ),
    (f"{_ACCELERATE}utils/random.py", "synchronize_rng_state"): Purpose(
        "accelerate", "random state, for an epoch's order"
    ),
    # -- transformers ------------------------------------------------------------------------------
    (_TRAINER, "_get_num_items_in_batch"): Purpose("HF Trainer", "tokens in the batch"),
    (_TRAINER, "_maybe_log_save_evaluate"): _inside(
        "HF Trainer", "loss for the log", "nested_gather"
    ),
    (_TRAINER, "store_flos"): Purpose("HF Trainer", "operations so far"),
    (_TRAINER, "evaluation_loop"): _inside(
        "HF Trainer", "results of an evaluation", "gather_for_metrics", "wrapper", "gather"
    ),
    # -- DeepSpeed: not tested, see docs/frameworks.md ---------------------------------------------
    (f"{_ENGINE}engine.py", "_broadcast_model"): Purpose("DeepSpeed", "parameters, at start"),
    (f"{_ENGINE}zero/partition_parameters.py", "_zero_init_param"): Purpose(
        "DeepSpeed", "parameters, at start"
    ),
    (f"{_ENGINE}engine.py", "allreduce_bucket"): Purpose("DeepSpeed", "gradients"),
    (f"{_ENGINE}zero/stage_1_and_2.py", "allreduce_bucket"): Purpose("DeepSpeed", "gradients"),
    (f"{_ENGINE}comm/coalesced_collectives.py", "_torch_reduce_scatter_fn"): Purpose(
        "DeepSpeed", "gradients"
    ),
    (f"{_ENGINE}utils.py", "clip_grad_norm_"): Purpose("DeepSpeed", "norm of the gradients"),
    (f"{_ENGINE}zero/stage_1_and_2.py", "get_grad_norm_direct"): Purpose(
        "DeepSpeed", "norm of the gradients"
    ),
    (f"{_ENGINE}zero/stage3.py", "get_grad_norm_direct"): Purpose(
        "DeepSpeed", "norm of the gradients"
    ),
    (f"{_ENGINE}utils.py", "all_gather_into_tensor_dp_groups"): Purpose(
        "DeepSpeed", "updated parameters"
    ),
    (f"{_ENGINE}zero/partition_parameters.py", "_dist_allgather_fn"): Purpose(
        "DeepSpeed", "parameters"
    ),
    (f"{_ENGINE}zero/partition_parameters.py", "_allgather_params_coalesced"): Purpose(
        "DeepSpeed", "parameters"
    ),
    (f"{_ENGINE}zero/partition_parameters.py", "_allgather_params_sequential"): Purpose(
        "DeepSpeed", "parameters"
    ),
    (f"{_ENGINE}zero/utils.py", "assert_ints_same_as_other_ranks"): Purpose(
        "DeepSpeed", "whether ranks fetch parameters alike"
    ),
    (f"{_ENGINE}engine.py", "_checkpoint_tag_validation"): Purpose(
        "DeepSpeed", "tag of a checkpoint"
    ),
    (f"{_ENGINE}engine.py", "save_checkpoint"): _inside(
        "DeepSpeed", "start and end of a checkpoint", "log_wrapper"
    ),
    (f"{_ENGINE}zero/stage3.py", "_create_fp16_partitions_with_defragmentation"): _inside(
        "DeepSpeed", "set-up", "log_wrapper"
    ),
    (f"{_ENGINE}zero/stage3.py", "_setup_for_real_optimizer"): _inside(
        "DeepSpeed", "set-up", "log_wrapper"
    ),
}  # fmt: skip
"""By file, relative to its installation, and function."""

NO_PURPOSE = Purpose("", "")
"""For what is communicated under torch's own frames on behalf of a model, such as its gradients:
whoever called `backward` did not issue it."""

KNOWN = frozenset(("accelerate", "deepspeed", "lightning", "torchmetrics", "transformers"))
"""Packages through whose frames the search for one of these functions continues. It stops at any
other package's: that was called back, and communicates something of its own."""

_PLACES = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


def installed(path: str) -> str:
    """The path of an installed package's file relative to site-packages, "" for any other file."""
    for place in _PLACES:
        _, found, rest = path.rpartition(place)
        if found:
            return rest
    return ""


originals: dict[CodeType, CodeType] = {}
"""Code of the probe's hooks, and that of torch's functions which they replace."""


def purpose_of(code: CodeType) -> Purpose | None:
    """What is communicated under a function, None if unknown."""
    code = originals.get(code, code)
    return PURPOSES.get((installed(code.co_filename), code.co_name))


def package_of(path: str) -> str:
    """The installed package that a file belongs to, "" if none."""
    return installed(path).partition(os.sep)[0].removesuffix(".py")


def function_of(code: CodeType) -> str:
    """Import path of a package's function: `accelerate.utils.operations.gather`."""
    code = originals.get(code, code)
    path = installed(code.co_filename).removesuffix(".py").removesuffix(f"{os.sep}__init__")
    name = getattr(code, "co_qualname", code.co_name).replace(".<locals>", "")
    return f"{path.replace(os.sep, '.')}.{name}"
