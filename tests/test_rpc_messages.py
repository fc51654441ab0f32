"""Messages between client and server: what is none is refused with a sentence, in little memory."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm_mlc.base.errors import BundleError, EngineError, MiniCPMError
from minicpm_mlc.runtime_py.rpc import client
from minicpm_mlc.runtime_py.rpc.client import RemoteMachine
from minicpm_mlc.runtime_py.rpc.client_handler import ClientHandler
from minicpm_mlc.runtime_py.rpc.message import DTYPES, pack, unpack

ROUNDS = 4000
MOST_BYTES = 64 << 20


def message(values: Any, arrays: Any, rest: bytes = b"") -> bytes:
    head = json.dumps([values, arrays]).encode()
    return len(head).to_bytes(8, "little") + head + rest


STRANGE = [
    b"",
    b"\xff" * 8,
    b"\xff" * 100,
    (1 << 40).to_bytes(8, "little") + b"[{}, []]",
    message({}, [["<f4", [1 << 62]]]),
    message({}, [["<f4", [1 << 40, 1 << 40, 0]]]),
    message({}, [["<f4", [0] * 100]]),
    message({}, [["<f4", [-1]]], bytes(4)),
    message({}, [["<f4", [True]]], bytes(4)),
    message({}, [["<f4", ["1"]]], bytes(4)),
    message({}, [["<f4", [1.0]]], bytes(4)),
    message({}, [["<f4", 1]], bytes(4)),
    message({}, [["|O", [1]]], bytes(8)),
    message({}, [["|V4", [1]]], bytes(4)),
    message({}, [[[["a", "<f4"]], [1]]], bytes(4)),
    message({}, [["<f4"]]),
    message({}, {"<f4": 1}),
    message({}, [["<f4", [1]]], bytes(5)),
    message({}, [["<f4", [2]]], bytes(4)),
    message([], []),
    message(None, []),
    b"\x06" + bytes(7) + b"[{}]  ",
    (200_000).to_bytes(8, "little") + b"[" * 200_000,
    (5000).to_bytes(8, "little") + b"9" * 5000,
    (2).to_bytes(8, "little") + b"\xff\xfe",
]


@pytest.mark.parametrize("data", STRANGE, ids=range(len(STRANGE)))
def test_what_is_no_message_is_refused_with_a_sentence(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(EngineError, match=r"no message .*install the same version"):
            unpack(data)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_each_dtype_goes_there_and_back(dtype: np.dtype) -> None:
    _, (back,) = unpack(pack({}, [np.arange(6).astype(dtype).reshape(2, 3)]))
    assert back.dtype == dtype and back.tolist() == np.arange(6).reshape(2, 3).tolist()


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: bytes replaced, cut out, doubled, or the end left off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(changed):
            changed[at] = rng.choice(b'\x00\xff{}[],:"-0e' + bytes([rng.randrange(256)]))
        elif kind == 1:
            del changed[at : at + rng.randint(1, 9)]
        elif kind == 2:
            changed[at:at] = changed[max(0, at - rng.randint(1, 40)) : at]
        else:
            del changed[at:]
    return bytes(changed)


REQUESTS = [
    pack({"method": "hello"}),
    pack({"method": "missing", "wanted": {"0" * 64: 12}}),
    pack({"method": "write", "sha256": "1" * 64, "offset": 0}, [np.arange(9, dtype=np.uint8)]),
    pack({"method": "finish", "sha256": "2" * 64}),
    pack({"method": "open", "threads": 1}, [np.frombuffer(b'{"format": 1}', np.uint8)]),
    pack({"method": "new_pools", "library": 0, "pages": 3, "draft": False}),
    pack(
        {"method": "decode", "library": 0, "pools": 0, "sparse": False},
        [np.zeros(1, np.int32), np.ones(1, np.int32), np.zeros((1, 2), np.int32)],
    ),
]


def test_mutated_messages_end_in_our_errors_or_in_a_message() -> None:
    rng = random.Random(13)
    refused = 0
    for turn in range(ROUNDS):
        try:
            values, arrays = unpack(mutated(REQUESTS[turn % len(REQUESTS)], rng))
        except EngineError:
            refused += 1
            continue
        assert isinstance(values, dict) and all(isinstance(a, np.ndarray) for a in arrays)
    assert ROUNDS // 2 < refused < ROUNDS


def test_a_server_answers_every_mutated_request(tmp_path: Path) -> None:
    """With a message, or with a Python error that TVM's RPC carries; nothing outside its folder is
    touched.
    """
    rng = random.Random(31)
    handler = ClientHandler(tmp_path / "store")
    answered = 0
    for turn in range(ROUNDS // 4):
        request = mutated(REQUESTS[turn % len(REQUESTS)], rng)
        try:
            values, _ = unpack(handler._answer(request))
            answered += "error" in values
        except (TypeError, IndexError, KeyError, AttributeError, ValueError):
            pass  # a method called with what it doesn't take
    assert answered > ROUNDS // 16
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
    "name", ["_answer", "__init__", "_store", "__class__", "no such", None, []]
)
def test_only_what_a_client_may_ask_for_is_found(tmp_path: Path, name: Any) -> None:
    values, _ = unpack(ClientHandler(tmp_path)._answer(pack({"method": name})))
    assert values["error"][0] == "EngineError" and "the server knows no" in values["error"][1]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (["BundleError", "damaged"], BundleError),
        (["MiniCPMError", "damaged"], MiniCPMError),
        (["annotations", "damaged"], MiniCPMError),
        (["__loader__", "damaged"], MiniCPMError),
        (["KeyError", "damaged"], MiniCPMError),
        ([7, "damaged"], MiniCPMError),
        ("damaged", MiniCPMError),
    ],
)
def test_an_error_of_the_server_is_one_of_ours(said: Any, kind: type[MiniCPMError]) -> None:
    machine = object.__new__(RemoteMachine)
    machine.__dict__.update(address="h:1", _call=lambda _: pack({"error": said}))
    with pytest.raises(MiniCPMError, match="damaged") as caught:
        machine.call("hello")
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("hello", "message"),
    [
        ({"protocol": 3}, "speaks protocol 3, not"),
        ({}, "speaks protocol None, not"),
        ({"protocol": client.PROTOCOL}, "says nothing that is known of itself"),
        ({"protocol": client.PROTOCOL, "host": 7}, "says nothing that is known of itself"),
    ],
)
def test_a_server_of_another_version_is_told(monkeypatch, hello: dict, message: str) -> None:
    session = {client.CALL: lambda _: pack(hello)}
    monkeypatch.setattr(client, "open_session", lambda *_: session)
    with pytest.raises(EngineError, match=message):
        RemoteMachine("h:1", "key")
