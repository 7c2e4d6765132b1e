"""The served engine on a Ray cluster: `serve run cprs_integrations.serving.ray_app:build min_replicas=1 max_replicas=8`.

Two deployments: "app" answers requests, the same as `cprs serve` does, and cuts them into windows; "critic" has the model, in
replicas that come and go with the load. Windows of all requests share calls of some thousand tokens. A replica of the critic
that dies loses nothing. Needs the extras "ray" and "serve".
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cprs_integrations.critics import load_critic
from cprs_integrations.critics.base import Critic, TokenScores
from cprs_integrations.critics.ray import checked_resources, connect, losses
from cprs_integrations.critics.spread import LostError, SpreadCritic, Worker
from cprs_integrations.engine import CPRSEngine
from cprs_integrations.errors import CriticError, require
from cprs_integrations.serving.app import create_app
from cprs_integrations.serving.logs import configure
from cprs_integrations.serving.settings import Settings
from cprs_integrations.windows import Window

APP, CRITIC = "app", "critic"
_WAITING = 2  # calls that a replica may have: one that runs, one that waits there; more make Ray Serve add replicas
_PROBES = 64  # requests beyond the queue that reach the app: probes, and those that get 429


class Options(BaseModel):
    """What `serve run` takes as NAME=VALUE."""

    model_config = ConfigDict(extra="forbid")

    critic: str | None = Field(None, description="Folder or id of a critic; None: the one that ships.")
    critic_options: dict[str, Any] = Field(default_factory=dict, description="Its other options; in a config file alone.")
    device: str | None = Field(None, description="Where it computes, e.g. cuda.")
    dtype: str | None = Field(None, description="In which precision, e.g. bfloat16.")
    min_replicas: int = Field(1, ge=0, description="Replicas of the critic when there is nothing to do.")
    max_replicas: int = Field(1, ge=1, description="Replicas of the critic under load.")
    num_cpus: float = Field(1, description="What each of them reserves.")
    num_gpus: float = Field(0, description="What each of them reserves.")
    batch_tokens: int | None = Field(None, ge=1, description="Tokens of a call; None: four windows, at least 2,048.")
    apps: int = Field(1, ge=1, description="Replicas of the app; with several, /v1/select may reach one without the scores.")

    @model_validator(mode="after")
    def _check(self) -> "Options":
        checked_resources(self.num_cpus, self.num_gpus)
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """The critic's options that are given."""
        named = {"device": self.device, "dtype": self.dtype}
        return {**self.critic_options, **{name: value for name, value in named.items() if value is not None}}


def build(args: Options) -> Any:
    """Make the Ray Serve application. Limits and token are the environment variables of `Settings`, read here.

    Args:
        args: options of the critic and of scaling.

    Returns:
        What `serve run` and `ray.serve.run` take.

    Raises:
        ArgumentError: an environment variable has a value it cannot have.
        MissingExtraError: Ray is not installed.
    """
    serve = require("ray.serve", "ray")
    settings = Settings.from_environment()
    critic = serve.deployment(
        CriticReplica,
        name=CRITIC,
        max_ongoing_requests=_WAITING,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "initial_replicas": max(1, args.min_replicas),
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": _WAITING,
        },
    )
    app = serve.deployment(
        serve.ingress(_maker(settings, args))(),
        name=APP,
        num_replicas=args.apps,
        max_ongoing_requests=2 * settings.max_queue + _PROBES,
    )
    return app.bind(critic.bind(args.critic, args.given))


def _maker(settings: Settings, args: Options) -> Callable[[], FastAPI]:
    """What makes the app, in its replica."""

    def app() -> FastAPI:
        configure()
        with ThreadPoolExecutor(1) as pool:  # this is the event loop's thread, where nobody may wait for a replica
            critic = pool.submit(_spread, args).result()
        return create_app(CPRSEngine(critic=critic), settings)

    return app


def _spread(args: Options) -> SpreadCritic:
    serve = require("ray.serve", "ray")
    handle = serve.get_deployment_handle(CRITIC, serve.get_replica_context().app_name)
    replicas = ServedReplicas(handle)
    reader = replicas.reader() or load_critic(args.critic, **args.given)
    return SpreadCritic(replicas, reader, count=args.max_replicas, batch_tokens=args.batch_tokens)


class CriticReplica(Worker):
    """The deployment with the model: one call at a time, in a thread, so that it answers probes meanwhile."""

    def __init__(self, critic: str | None, options: dict[str, Any]) -> None:
        self.start(partial(load_critic, critic, **options))
        self._turn = asyncio.Lock()

    async def score_windows(self, windows: list[Window]) -> list[TokenScores]:
        """Score the windows of a call."""
        async with self._turn:
            return await asyncio.to_thread(self.score, windows)


class ServedReplicas:
    """The replicas of a deployment: Ray Serve chooses one for each call, and replaces those that died."""

    def __init__(self, handle: Any) -> None:
        self._handle, self._losses = handle, losses()
        self._ray = connect()

    def reader(self) -> Critic | None:
        """The critic without its model, or None; waits for the first replica."""
        found: Critic | None = self._handle.reader.remote().result()
        return found

    def send(self, windows: list[Window]) -> Any:
        """Send a call."""
        return self._handle.score_windows.remote(windows)

    def answers(self, call: Any) -> list[TokenScores]:
        """Wait for the answers of a call.

        Raises:
            LostError: its replica died.
            Exception: the critic failed.
        """
        try:
            found: list[TokenScores] = call.result()
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise CriticError(str(error)) from error
        except self._losses as error:
            raise LostError from error
        return found
