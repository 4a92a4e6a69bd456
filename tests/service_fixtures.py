"""Fixtures around tests.service.Service: folders whose tests run real workers import them in their conftest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service import Service, write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2: two layers, widths that are no power of two, a byte-level tokenizer."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny", layers=2)


@pytest.fixture(scope="session")
def deep_model(tiny_model: Path) -> Path:
    """The same with four layers."""
    return write_model(tiny_model.with_name("deep"), layers=4)


@pytest.fixture(scope="session")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of many documents, so that no split is empty."""
    path = tmp_path_factory.mktemp("texts") / "numbers.txt"
    documents = (f"{n} plus {n + 1} is {2 * n + 1}; {n} times itself is {n * n}. " * 4 for n in range(200))
    path.write_text("<|endoftext|>".join(documents))
    return path


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """An S3 API on loopback with the bucket ``box``: the variables that tell of it, as an operator would set them."""
    import boto3
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-seen-anywhere",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="box")
        yield variables
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def make_service() -> type[Service]:
    """What a module's service is; modules may have their own."""
    return Service


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def service(
    request: pytest.FixtureRequest,
    make_service: type[Service],
    new_database: Callable[[str, Path], str],
    tmp_path_factory: pytest.TempPathFactory,
    redis_server_url: str,
    repo: Path,
    tiny_model: Path,
    text_path: Path,
) -> Iterator[Service]:
    """One stack a module and database: tests share its worker, and each uses configs of its own."""
    import redis

    client = redis.Redis.from_url(redis_server_url)
    client.flushall()
    client.close()
    folder = tmp_path_factory.mktemp("var")
    url = new_database(request.param, folder)
    service = make_service(url, redis_server_url, folder, repo, [tiny_model.parent.parent, text_path.parent])
    yield service
    service.close()


@pytest.fixture(scope="module")
def model_id(service: Service, tiny_model: Path) -> str:
    return service.add_model(tiny_model)


@pytest.fixture(scope="module")
def calibration_id(service: Service, model_id: str, text_path: Path) -> str:
    """A calibration of the tiny model, made by the service's worker."""
    service.worker()
    return service.calibrate(model_id, text_path)


@pytest.fixture
def grid() -> Callable[[int, int], list[dict[str, Any]]]:
    """``grid(seed, n)``: n configs that no other seed's share."""

    def make(seed: int, n: int) -> list[dict[str, Any]]:
        configs = [
            {"b_q": b_q, "rank": rank, "codebook": "scalar", "seed": seed, "iterations": 2}
            for b_q in (2, 3, 4)
            for rank in (2, 4, 6, 8)
        ]
        return configs[:n]

    return make
