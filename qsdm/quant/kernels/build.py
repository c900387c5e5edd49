"""Compile ``fake_quant.cu``: at run time by NVRTC for the GPU (no nvcc), or by a C++ compiler.

``pip install 'qsdm[cuda]'`` installs NVRTC and NVIDIA's ``cuda-core``. The twin that the C++
compiler makes is for tests: it runs the kernels' own source where there is no GPU.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("fake_quant.cu")
SUFFIX = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16"}
NAMES = tuple(
    f"{kernel}_{suffix}"
    for kernel in ("affine", "affine_backward", "lookup", "tokens")
    for suffix in SUFFIX.values()
)
MAX_THREADS = 256  # as in the source


@functools.cache
def cuda_available() -> bool:
    """Whether there is a GPU, and the packages that compile for it."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        from cuda.core import Program  # noqa: F401
    except ImportError:
        return False
    return True


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
