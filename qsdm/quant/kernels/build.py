"""``fake_quant.cu`` compiled: by NVRTC at run time for the GPU at hand (no nvcc), or by a C++ compiler as its CPU twin.

``pip install 'qsdm[cuda]'`` brings NVRTC and NVIDIA's ``cuda-core``. The twin exists for tests: it runs the kernels'
own source where there is no GPU.
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
    """Whether there is a GPU and what compiles for it."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        from cuda.core import Program  # noqa: F401
    except ImportError:
        return False
    return True


def compile_cubin(arch: str) -> Any:
    """Machine code for ``arch``, as ``sm_90``. Needs no GPU.

    Contraction is off and division is exact: results must be the reference's.
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(std="c++17", arch=arch, fma=False, prec_div=True, ftz=False)
    return Program(SOURCE.read_text(encoding="utf-8"), "c++", options).compile(
        "cubin", name_expressions=NAMES
    )


@functools.cache
def cuda_kernel(name: str, device_index: int) -> Any:
    from cuda.core import Device

    return _cuda_module(Device(device_index).arch).get_kernel(name)


@functools.cache
def _cuda_module(arch: str) -> Any:
    return compile_cubin(f"sm_{arch}")


def compile_twin(folder: Path) -> ctypes.CDLL | None:
    """The kernels as C functions, or None where there is no C++ compiler.

    Their first arguments are the numbers of blocks and threads.
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
