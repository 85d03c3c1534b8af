"""Fixtures that many tests share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.tiny_config import make_config
from tests.tiny_pipeline import make_tiny_pipeline

__all__ = ["make_config"]


# Ray runs its workers at niceness 15, so whatever else the machine does would make tests wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests are small: more threads than cores, or two on tiny tensors, only cost time."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random pipeline that predicts epsilon. Read only."""
    return make_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "epsilon")


@pytest.fixture(scope="session")
def tiny_pipeline_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random pipeline that predicts v, as Stable Diffusion 2.x does. Read only."""
    return make_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "v_prediction", "v_prediction", seed=1)


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
