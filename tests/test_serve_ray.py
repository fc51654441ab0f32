"""`serve --ray` on a local cluster of two nodes: what a lost replica and an update cost."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from serving import SUM, objects

from minicpm_mlc.serve.options import Serving

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="pip install 'minicpm-mlc[ray]'"
    ),
]
CHAT = "/v1/chat/completions"
REPLICA = "ServeReplica:minicpm-mlc:model"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Deployed:
    """The application on a cluster, and how to put it there again."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._port = free_port()
        self.address = f"http://127.0.0.1:{self._port}"

    def deploy(self, name: str) -> None:
        """Deploys it, with a name of its own."""
        from minicpm_mlc.serve.ray_serve import deploy

        serving = Serving(port=self._port, name=name, parallel=4, grace=30)
        assert deploy(str(self._bundle), serving, replicas="2", threads=1) == self.address

    def open(self, path: str, body: Any = None) -> Any:
        """A reply."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        asked = urllib.request.Request(self.address + path, data, headers)
        return urllib.request.urlopen(asked, timeout=120)

    def ask(self, messages: list[Any] = SUM, **options: Any) -> Any:
        """A whole answer."""
        with self.open(CHAT, {"messages": messages, "temperature": 0, **options}) as reply:
            return json.load(reply)


@pytest.fixture(scope="module")
def deployed(demo_bundle: Path) -> Iterator[Deployed]:
    ray = import_module("ray")
    serve = import_module("ray.serve")
    cluster = import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2}
    )
    try:
        cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, log_to_driver=False)
        found = Deployed(demo_bundle)
        found.deploy("first")
        yield found
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


def replicas() -> list[int]:
    """The processes of the model's replicas."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if REPLICA in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def other(i: int) -> list[Any]:
    """The beginning of a conversation of its own."""
    return [{"role": "user", "content": f"What is {1000 + 37 * i} + {300 + i}?"}]


def test_it_is_the_same_application(deployed):
    said = deployed.ask()
    assert said["choices"][0]["message"]["content"] == "4827 + 356 = 5183."
    body = {"messages": SUM, "stream": True, "temperature": 0}
    with deployed.open(CHAT, body) as reply:
        raw = reply.read()
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in objects(raw))
    assert text == said["choices"][0]["message"]["content"] and raw.endswith(b"[DONE]\n\n")
    with deployed.open("/v1/models") as reply:
        assert json.load(reply)["data"][0]["id"] == "first"
    assert len(replicas()) == 2


def test_a_conversation_goes_to_the_replica_that_knows_it(deployed):
    cached = []
    for i in range(8):
        first = deployed.ask(other(i), max_tokens=40)
        said = {"role": "assistant", "content": first["choices"][0]["message"]["content"] or "x"}
        time.sleep(0.3)  # until the fronts know where it is
        more = [*other(i), said, {"role": "user", "content": "And one more?"}]
        usage = deployed.ask(more, max_tokens=2)["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert min(cached) >= len(SUM[0]["content"]) // 4, cached


def test_a_killed_replica_costs_its_streams_alone(deployed):
    begun = threading.Barrier(9)

    def stream(i: int) -> bytes:
        body = {"messages": other(100 + i), "stream": True, "ignore_eos": True, "max_tokens": 1500}
        with deployed.open(CHAT, body) as reply:
            first = reply.read(200)
            begun.wait(60)
            return first + reply.read()

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, i) for i in range(8)]
        begun.wait(60)
        os.kill(replicas()[0], signal.SIGKILL)
        said = [each.result() for each in streams]
    whole = [text for text in said if text.endswith(b"[DONE]\n\n")]
    cut = [objects(text)[-1] for text in said if text not in whole]
    assert whole and cut and all("lost" in each["error"]["message"] for each in cut), cut
    for _ in range(5):
        assert deployed.ask(max_tokens=3)["choices"][0]["finish_reason"] == "length"
    for _ in range(120):
        if len(replicas()) == 2:
            break
        time.sleep(0.5)
    assert len(replicas()) == 2


def test_an_update_loses_no_request(deployed):
    ended = threading.Event()
    failed: list[object] = []
    names: list[str] = []

    def client(i: int) -> None:
        turn = 0
        while not ended.is_set():
            turn += 1
            try:
                said = deployed.ask(other(1000 * i + turn), max_tokens=30)
                names.append(said["model"])
            except Exception as error:  # every one of them is a request that was lost
                failed.append(error)

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, i) for i in range(4)]
        time.sleep(2)
        deployed.deploy("second")
        time.sleep(2)
        ended.set()
        for each in clients:
            each.result()
    assert not failed, failed[:3]
    assert names[0] == "first" and names[-1] == "second" and len(names) > 20
