"""A crowd of clients that leave, read slowly, send too much or ask too often."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import re
import resource
import socket
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import SUM, Address, server

pytestmark = pytest.mark.campaign
AT_ONCE = 20
MANY = 10_000


def post(address: Address, body: bytes, timeout: float = 60) -> http.client.HTTPResponse:
    """An answer's beginning."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=timeout)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    return connection.getresponse()


def asks(**options: object) -> bytes:
    return json.dumps({"messages": SUM, "ignore_eos": True, "max_tokens": 100} | options).encode()


def cut(address: Address, seed: int) -> int:
    """Opens an answer and leaves in the middle of it, or before it begins."""
    draw = random.Random(seed)
    stream = draw.random() < 0.7
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        body = asks(stream=stream, max_tokens=300)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json"
        )
        whole = f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        connection.sendall(whole[: draw.choice((40, len(whole), len(whole), len(whole)))])
        for _ in range(draw.randrange(8)):
            connection.settimeout(0.05)
            try:
                connection.recv(draw.choice((1, 100, 4000)))
            except TimeoutError:
                break
    return seed


def refused(address: Address, body: bytes) -> bool:
    """Whether a body is: told, or cut off while it is sent."""
    try:
        return post(address, body).status == 413
    except OSError:
        return True


def memory(address: Address) -> int:
    """Bytes of the server's memory that are resident."""
    return int(Path(f"/proc/{address.pid}/statm").read_text().split()[1]) * 4096


def running(address: Address) -> float:
    with urllib.request.urlopen(f"{address}/metrics") as reply:
        found = re.findall(
            r"^minicpm_requests_(?:running|waiting) (\d+)", reply.read().decode(), re.M
        )
    return sum(map(int, found))


def wait_until_idle(address: Address) -> None:
    for _ in range(200):
        if running(address) == 0:
            return
        time.sleep(0.05)
    raise AssertionError("a request is stuck")


def test_a_thousand_streams_cut_at_random(demo_bundle):
    with (
        server(demo_bundle, "--max-waiting", "100") as address,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        sizes = []
        for part in range(15):  # memory grows until the cache's pages have been used once
            list(pool.map(lambda seed: cut(address, seed), range(200 * part, 200 * (part + 1))))
            wait_until_idle(address)
            sizes.append(memory(address))
        assert json.load(post(address, asks(max_tokens=3)))["usage"]["completion_tokens"] == 3
        assert sizes[-1] < 1.02 * sizes[9], sizes  # over the last thousand


def test_slow_readers_hold_up_nobody(demo_bundle):
    with server(demo_bundle, "--parallel", "4", "--max-waiting", "300") as address:
        slow = [post(address, asks(stream=True, max_tokens=60)) for _ in range(200)]
        started = time.perf_counter()
        assert json.load(post(address, asks(max_tokens=3)))["usage"]["completion_tokens"] == 3
        assert time.perf_counter() - started < 30
        for reply in slow:
            assert reply.read(100)
            reply.close()
        wait_until_idle(address)


async def queued(address: Address, count: int) -> Counter[int]:
    """The statuses of so many requests that wait at the same time."""
    host, port = address.removeprefix("http://").split(":")
    body = asks(max_tokens=1)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json"
    sent = f"{head}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    opening = asyncio.Semaphore(200)  # more handshakes at once would be tried again much later

    async def one() -> int:
        async with opening:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(sent)
            await writer.drain()
        reply = await reader.read()
        writer.close()
        return int(reply.split()[1])

    return Counter(await asyncio.gather(*(one() for _ in range(count))))


def test_ten_thousand_requests_wait_and_are_answered(demo_bundle):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < MANY + 1000:
        pytest.skip(f"the system allows {hard} open files; ulimit -n {MANY + 1000}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (MANY + 1000, hard))
    try:
        with server(demo_bundle, "--max-waiting", str(MANY)) as address:
            sizes = []
            for _ in range(3):
                assert asyncio.run(queued(address, MANY)) == {200: MANY}
                wait_until_idle(address)
                sizes.append(memory(address))
            print(f"resident after each {MANY} requests: {[size >> 20 for size in sizes]} MiB")
            assert sizes[-1] < 1.02 * sizes[-2], sizes
            assert post(address, asks(max_tokens=3)).status == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_much_is_refused_and_the_rest_answered(demo_bundle):
    with server(demo_bundle, "--parallel", "2", "--max-waiting", "6") as address:
        with ThreadPoolExecutor(64) as pool:
            ask = asks(max_tokens=200)
            statuses = Counter(pool.map(lambda _: post(address, ask).status, range(400)))
        assert set(statuses) == {200, 429} and statuses[200] >= 8
        assert refused(address, b"x" * (100 << 20))
        wait_until_idle(address)
        assert post(address, asks(max_tokens=3)).status == 200
