"""Compile ``fake_quant.cu``: at run time by NVRTC for the GPU (no nvcc), or by a C++ compiler.

``pip install 'qsdm[cuda]'`` installs NVRTC and NVIDIA's ``cuda-core``. The twin that the C++
compiler makes is for tests: it runs the kernels' own source where there is no GPU.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

SOURCE = Path(__file__).with_name("fake_quant.cu")
SUFFIX = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16"}
NAMES = tuple(
    f"{kernel}_{suffix}"
    for kernel in ("affine", "affine_backward", "lookup", "tokens")
    for suffix in SUFFIX.values()
)
MAX_THREADS = 256  # as in the source


@functools.cache
def usable(device_index: int) -> bool:
    """Whether the kernels run on a GPU; if not, one line says why, and what is done instead.

    Args:
        device_index: of a GPU that torch sees.
    """
    try:
        cuda_kernel(NAMES[0], device_index)
    except ImportError:
        reason = "it needs pip install 'qsdm[cuda]'"
    except Exception as error:  # whatever a driver, NVRTC or an unknown GPU makes of it
        reason = f"{type(error).__name__}: {(str(error) or repr(error)).splitlines()[0]}"
    else:
        return True
    tqdm.write(
        f"qsdm's CUDA kernels do not run on GPU {device_index} ({reason}): weights are decoded on "
        "the CPU, or by torch, to the same values",
        file=sys.stderr,
    )
    return False


@functools.cache
def cuda_available() -> bool:
    """Whether torch sees a GPU, and the kernels run on its current one."""
    import torch

    return torch.cuda.is_available() and usable(torch.cuda.current_device())


def compile_cubin(arch: str) -> Any:
    """Compile the kernels to machine code; needs no GPU.

    Contraction is off and division is exact, so that results are those of the reference.

    Args:
        arch: the GPU's architecture, such as ``sm_90``.

    Returns:
        cuda-core's `ObjectCode`.
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(std="c++17", arch=arch, fma=False, prec_div=True, ftz=False)
    return Program(SOURCE.read_text(encoding="utf-8"), "c++", options).compile(
        "cubin", name_expressions=NAMES
    )


@functools.cache
def cuda_kernel(name: str, device_index: int) -> Any:
    """A compiled kernel.

    Args:
        name: one of `NAMES`.
        device_index: of the GPU.

    Returns:
        cuda-core's `Kernel`.
    """
    from cuda.core import Device

    return _cuda_module(Device(device_index).arch).get_kernel(name)


@functools.cache
def _cuda_module(arch: str) -> Any:
    return compile_cubin(f"sm_{arch}")


def compile_twin(folder: Path) -> ctypes.CDLL | None:
    """Compile the kernels to C functions.

    Their first arguments are the numbers of blocks and threads.

    Args:
        folder: where the library is written.

    Returns:
        The library; None where there is no C++ compiler.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    library = folder / "fake_quant.so"
    flags = [
        "-std=c++17",
        "-O2",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "-x",
        "c++",
    ]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
