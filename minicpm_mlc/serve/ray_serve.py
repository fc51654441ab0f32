"""`minicpm-mlc serve --ray`: the same application on several machines, by Ray Serve.

Every node has a front, which knows who may ask; replicas, one for each node or GPU, have the model.
The requests of one conversation go to the replica that has computed its beginning, as Ray Serve
routes requests for one of several models to the replica that has loaded it.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.base.installed import pip_install
from minicpm_mlc.bundle.devices import DEVICE_RUNTIMES
from minicpm_mlc.bundle.manifest import manifest_sha256, read_bundle
from minicpm_mlc.bundle.trust import refuse_stranger
from minicpm_mlc.serve.access import Access, Guard
from minicpm_mlc.serve.app import Settings, make_routes
from minicpm_mlc.serve.errors import ApiError
from minicpm_mlc.serve.forwarding import Forward, Lost, Message, Scope, replies
from minicpm_mlc.serve.opening import open_model
from minicpm_mlc.serve.options import Serving
from minicpm_mlc.serve.server import log_to_stderr

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody

try:
    ray: Any = import_module("ray")
    serve: Any = import_module("ray.serve")
    RayError: Any = import_module("ray.exceptions").RayError
    BackPressureError: Any = import_module("ray.serve.exceptions").BackPressureError
except ImportError:
    raise EngineError(f"--ray needs Ray Serve: {pip_install('ray')}") from None

APPLICATION = "minicpm-mlc"
MODEL = "model"
PARALLEL = 8  # requests that a replica answers at once, where the options don't say
CONVERSATIONS = 256  # of a replica, that requests find their way to


@dataclass(frozen=True)
class Scale:
    """How many replicas there are: at least `low`, up to `high` while requests wait, on one node
    at most `each`, which None leaves to Ray.
    """

    low: int
    high: int
    each: int | None = None

    @classmethod
    def of(cls, text: str | None, gpus: bool) -> Scale:
        """Of N or MIN:MAX; None: up to one for each node, or GPU, of the cluster. Raises
        EngineError.
        """
        if text is None:
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            count = sum(int(has.get("GPU", 0)) for has in alive) if gpus else len(alive)
            return cls(1, max(1, count), None if gpus else 1)
        low, _, high = text.partition(":")
        try:
            found = cls(int(low), int(high or low))
        except ValueError:
            found = cls(0, 0)
        if not 1 <= found.low <= found.high:
            raise EngineError(f"--replicas is {text!r:.40}; expected N or MIN:MAX, such as 1:4")
        return found


class Model:
    """One replica: a bundle on one engine."""

    def __init__(self, bundle: str, serving: Serving, engine_options: Mapping[str, Any]) -> None:
        log_to_stderr()
        self._opened = ExitStack()
        served, room = open_model(bundle, serving, engine_options, self._opened)
        self._app = make_routes(served, room, Settings(Access(), serving.reasoning_field))

    @serve.multiplexed(max_num_models_per_replica=CONVERSATIONS)
    async def conversation(self, name: str) -> str:
        """From now on this replica is the one for the conversation."""
        return name

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The messages of one request's answer."""
        if name := serve.get_multiplexed_model_id():
            await self.conversation(name)
        async with aclosing(replies(self._app, scope, body)) as messages:  # type: ignore[type-var]
            async for message in messages:
                yield message

    def __del__(self) -> None:
        self._opened.close()


class Handle:
    """The replicas behind Ray's handle of them."""

    @functools.cached_property
    def _handle(self) -> Any:
        return serve.get_deployment_handle(MODEL, app_name=APPLICATION)

    async def messages(
        self, scope: Scope, body: bytes, conversation: str
    ) -> AsyncIterator[Message]:
        """See `forwarding.Replicas`."""
        routed = self._handle.options(stream=True, multiplexed_model_id=conversation)
        answer = routed.answer.remote(scope, body)
        try:
            async for message in answer:
                yield message
        except BackPressureError as error:
            raise ApiError(429, "as many requests run or wait as may; ask again") from error
        except RayError as error:
            raise Lost from error
        finally:
            answer.cancel()


def application(
    bundle: str, serving: Serving, engine_options: Mapping[str, Any], scale: Scale, gpus: bool
) -> Any:
    """What Ray Serve deploys."""
    parallel = serving.parallel or PARALLEL
    scaled = {
        "min_replicas": scale.low,
        "max_replicas": scale.high,
        "target_ongoing_requests": parallel,
    }
    model = serve.deployment(
        Model,
        name=MODEL,
        autoscaling_config=scaled,
        max_ongoing_requests=parallel + serving.max_waiting,
        max_queued_requests=serving.max_waiting,
        graceful_shutdown_timeout_s=max(1.0, serving.grace),
        ray_actor_options={"num_cpus": 1, "num_gpus": int(gpus)},
        max_replicas_per_node=scale.each,
    )
    access = Access(serving.host, serving.keys, serving.origins, serving.hosts)

    def front() -> Guard:
        return Guard(Forward(Handle(), serving.most_bytes), access)

    fronts = serve.deployment(
        serve.ingress(front)(),
        name="front",
        max_ongoing_requests=100_000,  # the model's limits are the ones that count
        graceful_shutdown_timeout_s=max(1.0, serving.grace),
        ray_actor_options={"num_cpus": 0},
    )
    return fronts.bind(model.bind(bundle, serving, dict(engine_options)))


def deploy(
    bundle: str,
    serving: Serving,
    replicas: str | None = None,
    **engine_options: Any,
) -> str:
    """Deploys on the cluster that Ray is connected to, or updates what is deployed there. Returns
    the address.
    """
    if serving.state is not None:
        raise EngineError("--state can't be used with --ray: all replicas would write one file")
    device = read_bundle(bundle, device=engine_options.get("device")).manifest.target["device"]
    # replicas work in folders of their own
    bundle = str(Path(bundle).absolute())
    draft = engine_options.get("draft") and str(Path(engine_options["draft"]).absolute())
    pins = {path: manifest_sha256(path) for path in (bundle, draft) if path}
    for path, sha256 in pins.items():  # other nodes don't know who is trusted here
        refuse_stranger(Path(path), sha256)
    gpus = not DEVICE_RUNTIMES[device].in_process
    options = {"host": serving.host, "port": serving.port}
    serve.start(proxy_location="EveryNode", http_options=options)
    wanted = Scale.of(replicas, gpus)
    engine_options = {**engine_options, "draft": draft, "sha256": list(pins.values())}
    made = application(bundle, serving, engine_options, wanted, gpus)
    serve.run(made, name=APPLICATION, route_prefix="/")
    return f"http://{serving.host}:{serving.port}"


def run(
    bundle: str,
    serving: Serving,
    say: Callable[[str], None],
    replicas: str | None = None,
    **engine_options: Any,
) -> None:
    """Serves a bundle on a Ray cluster, that of RAY_ADDRESS or one of this machine alone, until
    SIGTERM or Ctrl-C.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    try:
        address = deploy(bundle, serving, replicas, **engine_options)
        say(f"{bundle} is served at {address} on Ray Serve (Ctrl-C ends it)")
        ended.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
