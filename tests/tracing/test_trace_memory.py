"""Memory of tracing large denoisers, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.tracing.published import CONF

# VmHWM: the peak of this program alone; the resource module's would be that of the test run which
# started it.
PROGRAM = """
import re, sys
from tests.tracing.published import model
from qsdm.denoisers import denoiser_class
from qsdm.trace import prepare
from qsdm import tracing
described = model(sys.argv[1])
denoiser_class(described)
module, inputs, _ = prepare(described)
tracing.trace(module, inputs, described.name, described.exclude, described.tied)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.soak
@pytest.mark.parametrize("name", ["sdxl", "flux", "qwen_image"])
def test_large_denoisers_are_traced_under_a_gigabyte(name: str) -> None:
    command = [sys.executable, "-c", PROGRAM, name]
    done = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1000
