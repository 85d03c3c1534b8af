"""Fixtures that many tests share.

What is slow to import is imported inside: pytest-xdist's controller, which runs no test, loads this file too.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from common.config.schema import Config
from tests.tiny_config import WHOLE, make_config

# Ray runs its workers at niceness 15, so whatever else the machine does would make tests wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

ON_RAY = ("faults", "integration")
"""Marks, and folders, of tests that start Ray: `make test` looks for them there alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test that starts Ray in another folder, where `make test` would not run it."""
    for item in items:
        is_quick = not item.get_closest_marker("slow")
        on_ray = any(item.get_closest_marker(mark) for mark in ON_RAY)
        if is_quick and on_ray and item.path.relative_to(Path(__file__).parent).parts[0] not in ON_RAY:
            raise pytest.UsageError(f"{item.nodeid} starts Ray: it belongs in a folder of {ON_RAY}.")


STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep what the process is to end with, see pytest_unconfigure."""
    session.config.stash[STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End a process in which Ray was started many times without destroying what is static in its libraries.

    A thread of Ray's metrics now and then outlives them, and what has passed would end with a segmentation
    fault (github.com/ray-project/ray/issues/31145). Its own clean-up is done here instead.
    """
    ray = sys.modules.get("ray")
    if ray is None or hasattr(config, "workerinput") or STATUS not in config.stash:
        return
    ray.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(config.stash[STATUS])


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests are small: more threads than cores, or two on tiny tensors, only cost time."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random pipeline that predicts epsilon. Read only."""
    from tests.tiny_pipeline import make_tiny_pipeline

    return make_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "epsilon")


@pytest.fixture(scope="session")
def tiny_pipeline_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random pipeline that predicts v, as Stable Diffusion 2.x does. Read only."""
    from tests.tiny_pipeline import make_tiny_pipeline

    return make_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "v_prediction", "v_prediction", seed=1)


@dataclass(frozen=True)
class WholeRun:
    """A finished run that nothing has disturbed, and what the terminal showed."""

    config: Config
    shown: str


@pytest.fixture(scope="session")
def whole_run(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """A run of the settings WHOLE, on a cluster of its own. Read only."""
    from driver.main import train
    from driver.report.console import PlainConsole

    config, text = make_config(tiny_pipeline, tmp_path_factory.mktemp("whole"), WHOLE), io.StringIO()
    assert train(config, PlainConsole(file=text, width=110)) == 0
    return WholeRun(config, text.getvalue())


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """host:port of an S3-compatible server in this process, with the bucket `bucket`."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            environment.setenv(f"AWS_{name}", value)
        address = f"endpoint_override={host}:{port}&scheme=http"
        filesystem, _ = fs.FileSystem.from_uri(f"s3://bucket?{address}&allow_bucket_creation=true")
        filesystem.create_dir("bucket")
        yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def s3_folder(s3_server: str, tmp_path: Path) -> str:
    """URI of an empty prefix of its own on that server."""
    return f"s3://bucket/{tmp_path.name}/runs?endpoint_override={s3_server}&scheme=http"
