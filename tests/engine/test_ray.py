"""The engine ray: actors that die, and clusters that do not help."""

from __future__ import annotations

import socket

import psutil
import pytest
from engine_work import (
    SMALL,
    check_that_all_others_are_done,
    check_that_no_worker_starts,
    interrupt_after_first,
    needs_ray,
    start,
    threads,
)
from processes import children

from qsdm.engine import EngineError
from qsdm.engine.ray import Ray


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("path_of_workers")
def test_ray_survives_ends_and_says_why() -> None:
    """On one cluster, which takes seconds to start."""
    import ray

    ray.init("local", include_dashboard=False, log_to_driver=False, **SMALL)
    try:
        check_that_all_others_are_done(Ray(), "its worker")
        check_that_no_worker_starts(Ray(num_workers=1))
        with pytest.raises(
            EngineError, match="no node of the cluster has 1 CPUs and 1 GPUs for a worker"
        ):
            Ray(num_gpus=1).open(start).__enter__()
        with (
            pytest.raises(
                EngineError, match=r"no worker has started within 2 s: .* engine.start_s"
            ),
            Ray(num_workers=1, num_gpus=1, start_s=2).open(start) as pool,
        ):
            list(pool.map([("square", 2)]))
        assert ray.is_initialized()  # whoever started it ends it
    finally:
        ray.shutdown()


@needs_ray
@pytest.mark.soak
@pytest.mark.usefixtures("path_of_workers")
def test_leaving_early_ends_the_cluster_that_ray_started() -> None:
    import ray

    started: list[psutil.Process] = []
    names: list[str] = []

    def look() -> None:
        started.extend(children("ray"))
        names.extend(process.name() for process in started)

    with pytest.raises(KeyboardInterrupt), Ray(num_workers=1, init=SMALL).open(threads) as pool:
        interrupt_after_first(pool, look)
    assert any("raylet" in name for name in names)
    assert not ray.is_initialized()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive


@needs_ray
def test_ray_does_not_wait_for_a_cluster_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"no Ray cluster at {address} "):
            Ray(address=address).open(start).__enter__()
