"""Several processes that train one model together, as ``torchrun`` and ``accelerate launch`` start them.

Every process runs the same program. Values are exchanged as numbers or JSON, never pickled, and reduced in the order of
the ranks, so that every rank has the same bits. With one process all functions here are local.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from merganser.devices import join_process_group, model_device
from merganser.errors import DiskFullError, InputError, MerganserError, RunError

T = TypeVar("T")
P = ParamSpec("P")

_in_main_only = False
"""Inside :func:`on_main`: the other ranks are waiting, so no collective can run."""


def launched_world_size() -> int:
    """Return the number of processes that the launcher started, whether or not :func:`initialize` has been called."""
    launched = {"RANK", "MASTER_ADDR"} <= os.environ.keys()
    return int(os.environ.get("WORLD_SIZE", "1")) if launched else 1


def launched_rank() -> int:
    """Return the rank that the launcher gave to this process."""
    return int(os.environ.get("RANK", "0")) if launched_world_size() > 1 else 0


def uses_fsdp() -> bool:
    """Return whether the launcher sets sharded weights (FSDP2).

    Raises:
        InputError: it sets FSDP1, or weights offloaded to the processor.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise InputError("FSDP version 1 is not supported.", "Use fsdp_version: 2 (--fsdp_version 2).")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise InputError("FSDP with offloaded parameters is not supported.", "Use fsdp_offload_params: false.")
    return launched_world_size() > 1


def initialize() -> None:
    """Join the process group of the launcher; does nothing with one process or in an initialised group."""
    if launched_world_size() == 1:
        return
    import torch

    if not torch.distributed.is_initialized():
        join_process_group()


def exit_after_barrier() -> None:
    """Exit this process once every rank has reached this barrier; does nothing with one process."""
    group = _group()
    if group is None:
        return
    group.barrier()  # no rank exits while another may still need it in a collective
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the group that still run when the interpreter shuts down can abort it, although all work is done.
    os._exit(0)


def is_peer_lost(error: BaseException) -> bool:
    """Return whether a collective failed because another process is gone."""
    if _group() is None or not isinstance(error, RuntimeError):
        return False
    import torch

    messages = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, torch.distributed.DistError) or any(message in str(error) for message in messages)


def _group() -> Any:
    """Return ``torch.distributed`` in a group of several processes, else ``None``; does not import torch."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed if distributed.get_world_size() > 1 else None


def world_size() -> int:
    """Return the number of processes that train together."""
    group = _group()
    return 1 if group is None else int(group.get_world_size())


def rank() -> int:
    """Return the rank of this process, from 0."""
    group = _group()
    return 0 if group is None else int(group.get_rank())


def is_main() -> bool:
    """Return whether this is rank 0, the only process that writes and logs."""
    return rank() == 0


def _device(group: Any) -> str:
    """Return the device of tensors in collectives."""
    return "cpu" if "cpu" in str(group.get_backend_config()) else str(model_device())


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Sum over the ranks, number by number, in double precision; the same bits on every rank."""
    group = _group()
    if group is None or not values:
        return list(values)
    import torch

    local = torch.tensor(values, dtype=torch.float64, device=_device(group))
    gathered = [torch.empty_like(local) for _ in range(group.get_world_size())]
    group.all_gather(gathered, local)
    return [_sum(column) for column in zip(*(tensor.tolist() for tensor in gathered), strict=True)]


def _sum(values: Sequence[float]) -> float:
    """Return the correctly rounded sum; infinities and NaN as in plain addition."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def all_gather_object(value: Any) -> list[Any]:
    """Gather a JSON value from every rank, in the order of the ranks."""
    group = _group()
    if group is None:
        return [value]
    import torch

    device = _device(group)
    local = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    size = torch.tensor([len(local)], device=device)
    sizes = [torch.empty_like(size) for _ in range(group.get_world_size())]
    group.all_gather(sizes, size)
    longest = max(int(length) for length in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(local)] = local
    gathered = [torch.empty_like(padded) for _ in sizes]
    group.all_gather(gathered, padded)
    return [
        json.loads(tensor[: int(length)].cpu().numpy().tobytes())
        for tensor, length in zip(gathered, sizes, strict=True)
    ]


def on_main(work: Callable[[], T]) -> T:
    """Run ``work`` on rank 0 alone while the others wait; every rank returns its result or raises its error.

    Args:
        work: returns a JSON value or a ``Path``. It may call :func:`on_main` again, which then runs the work at once.

    Raises:
        MerganserError: what ``work`` raised, on every rank.
        RunError: on the other ranks, where ``work`` raised another error on rank 0.
    """
    global _in_main_only
    if _group() is None or _in_main_only:
        return work()
    failure: Exception | None = None
    reply: dict[str, Any] = {}
    if is_main():
        _in_main_only = True
        try:
            reply = _encode(work())
        except Exception as error:
            failure, reply = error, _describe(error)
        finally:
            _in_main_only = False
    reply = all_gather_object(reply)[0]
    if failure is not None:
        raise failure
    if "error" in reply:
        raise _rebuild(reply)
    result: Any = Path(reply["path"]) if "path" in reply else reply["value"]
    return result


def main_only(method: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function to run on rank 0 alone, see :func:`on_main`."""

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return on_main(lambda: method(*args, **kwargs))

    return wrapper


def run_collectively(work: Callable[[], T]) -> T:
    """Run ``work`` on every rank; where it fails on one of them, all raise that error.

    Args:
        work: runs no collective itself.

    Raises:
        MerganserError: of the first rank on which ``work`` raised one.
    """
    if _group() is None or _in_main_only:
        return work()
    failure: MerganserError | None = None
    result: T
    try:
        result = work()
    except MerganserError as error:
        failure = error
    failures = all_gather_object(None if failure is None else _describe(failure))
    failed_rank = next((number for number, failed in enumerate(failures) if failed is not None), None)
    if failed_rank is None:
        return result
    if failure is not None and failed_rank == rank():
        raise failure
    raise _rebuild(failures[failed_rank])


def mark_collective(error: MerganserError) -> MerganserError:
    """Mark an error that every rank raises at the same place, so that only rank 0 reports it."""
    error.reported_elsewhere = not is_main()
    return error


def _encode(value: Any) -> dict[str, Any]:
    return {"path": str(value)} if isinstance(value, Path) else {"value": value}


def _describe(error: Exception) -> dict[str, Any]:
    if isinstance(error, MerganserError):
        kind = "InputError" if isinstance(error, InputError) else type(error).__name__
        return {"error": kind, "cause": error.cause, "remedy": error.remedy}
    return {"error": "RunError", "cause": f"Process {rank()} failed: {type(error).__name__}: {error}.", "remedy": ""}


def _rebuild(described: dict[str, Any]) -> MerganserError:
    kinds: dict[str, type[MerganserError]] = {"InputError": InputError, "DiskFullError": DiskFullError}
    error = kinds.get(described["error"], RunError)(described["cause"], described["remedy"])
    error.reported_elsewhere = True
    return error


def local_part(items: Sequence[T]) -> tuple[list[T], bool]:
    """Return this rank's part of the items, in order; parts differ by at most one item.

    Returns:
        The part, and whether it counts. Where there are fewer items than ranks, some get a padding item that does not
        count, so that every rank joins every collective.
    """
    number, size = rank(), world_size()
    part = list(items[len(items) * number // size : len(items) * (number + 1) // size])
    return (part, True) if part else (list(items[:1]), False)
