"""Compiles cuts of the fused kernel ahead of their launch, side by side in processes that use no GPU.

They leave the compiled kernels in Triton's cache on disk, where a launch with the same arguments finds them: what a
launch compiles follows from the functions of `path.py`, which take tensors of a CPU here.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import torch

from gram.kernels import first_use
from gram.kernels.fused.pack import Tuning, pack
from gram.kernels.fused.tuning import target_of
from gram.kernels.spec import Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A step of made-up states (`first_use.made_up`) of one model, cut in one way, for one device."""

    target: str
    """As `tuning.target_of` says."""
    compiler_target: tuple[str, int | str, int]
    """The same as Triton's driver says: backend, architecture, threads of a warp."""
    spec: Spec
    shapes: dict[str, list[int]]
    dtype: torch.dtype
    tuning: Tuning
    rows: int


class Driver:
    """In the place of Triton's driver, for a process that compiles and launches nothing."""

    def __init__(self, target: tuple[str, int | str, int]) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget(*target)

    def get_current_target(self) -> object:
        """What is compiled for."""
        return self.target

    def get_current_device(self) -> int:
        """The number of the device that would launch."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The stream that would be launched on."""
        return 0


def compiler_target(device: torch.device) -> tuple[str, int | str, int]:
    """What Triton's driver compiles for on a GPU."""
    from triton.runtime import driver

    with torch.cuda.device(device):
        found = driver.active.get_current_target()
    return found.backend, found.arch, found.warp_size


def request(
    device: torch.device, spec: Spec, shapes: dict[str, list[int]], dtype: torch.dtype, tuning: Tuning, rows: int
) -> Request:
    """The request for a GPU at hand."""
    return Request(
        target=target_of(device),
        compiler_target=compiler_target(device),
        spec=spec,
        shapes=shapes,
        dtype=dtype,
        tuning=tuning,
        rows=rows,
    )


def compile_one(asked: Request) -> None:
    """Compiles in this process, which can launch nothing afterwards. Raises what the compiler raises."""
    from triton.runtime import driver

    from gram.kernels.fused import path

    driver.set_active(Driver(asked.compiler_target))
    weights = {name: torch.zeros(shape, dtype=asked.dtype) for name, shape in asked.shapes.items()}
    packed = pack(weights, asked.spec, asked.dtype, asked.tuning)
    states, key = first_use.made_up(asked.spec, asked.dtype, torch.device("cpu"), asked.rows)
    path.compile_step(packed, asked.spec, *states, key, target=asked.target)


def compile_all(requests: Sequence[Request], processes: int) -> list[str | None]:
    """Compiles each request in one of some processes; what went wrong with each, None where nothing did."""
    before = multiprocessing.active_children()
    spawning = multiprocessing.get_context("spawn")  # a forked process would share this one's GPU
    with ProcessPoolExecutor(
        min(processes, len(requests)), mp_context=spawning, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = [pool.submit(compile_one, each) for each in requests]
        try:
            return [_error_of(each) for each in futures]
        except BaseException:  # a signal: nobody waits for a compiler
            for child in multiprocessing.active_children():
                if child not in before:
                    child.terminate()
            raise


def _error_of(future: Future[None]) -> str | None:
    try:
        future.result()
    except Exception as error:  # of one cut, or a process that the compiler took with it
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return None
