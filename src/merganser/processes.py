"""Several processes that train one model together, as ``torchrun`` and ``accelerate launch`` start them.

Every process runs the same program. What one of them alone knows is exchanged here, as numbers or JSON, never pickled,
and added up in the order of the processes, so that all of them go on with the same bits. With one process everything
here does nothing.
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

from merganser.errors import DiskFullError, InputError, MerganserError, RunError

T = TypeVar("T")
P = ParamSpec("P")

_alone = False
"""Inside :func:`on_main`: the others are waiting, so nothing can be exchanged."""


def planned() -> int:
    """How many processes the launcher started, whether or not they have met yet."""
    launched = {"RANK", "MASTER_ADDR"} <= os.environ.keys()
    return int(os.environ.get("WORLD_SIZE", "1")) if launched else 1


def planned_rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0")) if planned() > 1 else 0


def sharded() -> bool:
    """Whether the launcher asks that the weights be shared out over the processes (FSDP2).

    Raises:
        InputError: it asks for FSDP1, or for weights that wait in the processor's memory.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise InputError("FSDP version 1 was asked for.", "Use fsdp_version: 2 (--fsdp_version 2).")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise InputError("FSDP was asked to keep weights off the device.", "Use fsdp_offload_params: false.")
    return planned() > 1


def begin() -> None:
    """Meet the other processes that the launcher started; nothing when there are none, or when they have met."""
    if planned() == 1:
        return
    import torch

    if not torch.distributed.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("cuda:nccl,cpu:gloo" if cuda else "gloo")


def end() -> None:
    """Part from the other processes, when all of them are done: this process ends here. Alone: nothing."""
    group = _group()
    if group is None:
        return
    group.barrier()  # none goes while another may still want something of it
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the group that are left when the interpreter winds up can abort it, after everything was done.
    os._exit(0)


def lost(error: BaseException) -> bool:
    """Whether this is how a process notices that another one has gone: the exchange with it fails."""
    if _group() is None or not isinstance(error, RuntimeError):
        return False
    import torch

    told = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, torch.distributed.DistError) or any(each in str(error) for each in told)


def _group() -> Any:
    """``torch.distributed`` where several processes have met, else ``None``. Does not load torch."""
    found = sys.modules.get("torch.distributed")
    if found is None or not found.is_available() or not found.is_initialized():
        return None
    return found if found.get_world_size() > 1 else None


def count() -> int:
    """Number of processes that train together."""
    group = _group()
    return 1 if group is None else int(group.get_world_size())


def rank() -> int:
    """Number of this process, from 0."""
    group = _group()
    return 0 if group is None else int(group.get_rank())


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def _device(group: Any) -> str:
    """Where tensors must be to be exchanged."""
    return "cpu" if "cpu" in str(group.get_backend_config()) else "cuda"


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Sums over the processes, number by number, in double precision; the same bits in every process."""
    group = _group()
    if group is None or not values:
        return list(values)
    import torch

    mine = torch.tensor(values, dtype=torch.float64, device=_device(group))
    everybody = [torch.empty_like(mine) for _ in range(group.get_world_size())]
    group.all_gather(everybody, mine)
    return [_sum(column) for column in zip(*(each.tolist() for each in everybody), strict=True)]


def _sum(values: Sequence[float]) -> float:
    """Correctly rounded sum; infinities and NaN go through as plain addition has them."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def all_gather_object(value: Any) -> list[Any]:
    """A JSON value of every process, in the order of the processes."""
    group = _group()
    if group is None:
        return [value]
    import torch

    device = _device(group)
    mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    size = torch.tensor([len(mine)], device=device)
    sizes = [torch.empty_like(size) for _ in range(group.get_world_size())]
    group.all_gather(sizes, size)
    longest = max(int(each) for each in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(mine)] = mine
    everybody = [torch.empty_like(padded) for _ in sizes]
    group.all_gather(everybody, padded)
    return [
        json.loads(each[: int(number)].cpu().numpy().tobytes()) for each, number in zip(everybody, sizes, strict=True)
    ]


def on_main(work: Callable[[], T]) -> T:
    """Do something in process 0 alone, while the others wait; all of them get its result or its error.

    Args:
        work: returns a JSON value or a ``Path``. It may call :func:`on_main` again, which then simply does the work.

    Raises:
        MerganserError: what ``work`` raised, in every process.
        RunError: ``work`` failed in some other way; process 0 raises that itself.
    """
    global _alone
    if _group() is None or _alone:
        return work()
    failure: Exception | None = None
    told: dict[str, Any] = {}
    if is_main():
        _alone = True
        try:
            told = _encode(work())
        except Exception as error:
            failure, told = error, _describe(error)
        finally:
            _alone = False
    told = all_gather_object(told)[0]
    if failure is not None:
        raise failure
    if "error" in told:
        raise _rebuild(told)
    result: Any = Path(told["path"]) if "path" in told else told["value"]
    return result


def main_only(method: Callable[P, T]) -> Callable[P, T]:
    """A function that process 0 alone carries out, see :func:`on_main`."""

    @functools.wraps(method)
    def shared(*args: P.args, **kwargs: P.kwargs) -> T:
        return on_main(lambda: method(*args, **kwargs))

    return shared


def run_collectively(work: Callable[[], T]) -> T:
    """Do something in every process; where it fails in one of them, all raise that error.

    Args:
        work: exchanges nothing with other processes itself.

    Raises:
        MerganserError: of the first process in which ``work`` raised one.
    """
    if _group() is None or _alone:
        return work()
    failure: MerganserError | None = None
    result: T
    try:
        result = work()
    except MerganserError as error:
        failure = error
    told = all_gather_object(None if failure is None else _describe(failure))
    first = next((number for number, each in enumerate(told) if each is not None), None)
    if first is None:
        return result
    if failure is not None and first == rank():
        raise failure
    raise _rebuild(told[first])


def mark_collective(error: MerganserError) -> MerganserError:
    """An error that every process raises at the same place, since all of them know the same; process 0 says it."""
    error.told = not is_main()
    return error


def _encode(value: Any) -> dict[str, Any]:
    return {"path": str(value)} if isinstance(value, Path) else {"value": value}


def _describe(error: Exception) -> dict[str, Any]:
    if isinstance(error, MerganserError):
        return {"error": type(error).__name__, "cause": error.cause, "remedy": error.remedy}
    return {"error": "RunError", "cause": f"process {rank()} failed: {type(error).__name__}: {error}.", "remedy": ""}


def _rebuild(told: dict[str, Any]) -> MerganserError:
    kinds: dict[str, type[MerganserError]] = {"InputError": InputError, "DiskFullError": DiskFullError}
    error = kinds.get(told["error"], RunError)(told["cause"], told["remedy"])
    error.told = True
    return error


def part_of(items: Sequence[T]) -> tuple[list[T], bool]:
    """This process's part of the items: even, and in order.

    Returns:
        The part, and whether it counts. Where there are fewer items than processes, some get an item that does not
        count, so that all of them take part in every step.
    """
    number, processes = rank(), count()
    part = list(items[len(items) * number // processes : len(items) * (number + 1) // processes])
    return (part, True) if part else (list(items[:1]), False)
