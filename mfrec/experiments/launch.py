"""Processes that torchrun started: they join at the start, watch each other, and end together.

torchrun --nproc-per-node=2 -- train.py als --data prepared
torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT -- train.py als --data prepared
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mfrec.errors import InputError

if TYPE_CHECKING:
    from mfrec.experiments.config import ExperimentConfig
    from mfrec.processes import Processes


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


@contextlib.contextmanager
def launched_processes() -> Iterator[Processes | None]:
    """The processes of this launch, which are watched meanwhile; None if this process is alone.

    Raises:
        SystemExit: another process failed; one of the others has said so.
    """
    if not is_launched():
        yield None
        return
    import torch
    import torch.distributed as dist

    from mfrec.experiments.watch import Watch
    from mfrec.processes import PATIENCE, Processes

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    processes = Processes()
    with Watch(processes) as watch:
        try:
            yield processes
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
                raise
            # A peer is gone: the watch finds out which, says so, and ends this process.
            watch.wait_for_failure()
            raise
        dist.barrier()
        watch.stop()
        dist.destroy_process_group()


def take_gpu(config: ExperimentConfig) -> None:
    """Let this process train on a GPU of its own, if the configuration is for one.

    Raises:
        InputError: the host has fewer GPUs than processes.
    """
    import torch

    from mfrec.experiments.building import training_device

    if training_device(config).type != "cuda":
        return
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise InputError(
            f"each process must have a GPU of its own (this host has {count}); start {count}, or use the CPU"
        )
    torch.cuda.set_device(index)


def require_alone(verb: str) -> None:
    """Check that torchrun has not started several processes.

    Raises:
        InputError: it has.
    """
    if is_launched():
        raise InputError(f"{verb} must run in one process; start it without torchrun")
