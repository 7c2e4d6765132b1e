import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items):
    for item in items:
        if "cluster" in item.path.parts:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"))  # of Ray, by Ray


@pytest.fixture(scope="session")
def cluster():
    """A real cluster of this machine: its own processes, two CPUs, as little memory as Ray takes."""
    import ray

    folder = tempfile.mkdtemp(prefix="cprs-")  # short: Ray's sockets lie in there
    os.environ.update(
        PYTHONPATH=os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support"))),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_MODE="disabled",
        RAY_worker_niceness="0",  # workers would wait for all else on a busy machine
    )
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        log_to_driver=False,
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
