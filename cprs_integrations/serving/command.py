"""`cprs serve`: the app on uvicorn, with a shutdown that finishes what it took."""

import asyncio
import gc
import ipaddress
import os
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn

from cprs_integrations.caching import DocumentCache
from cprs_integrations.engine import CPRSEngine
from cprs_integrations.errors import ArgumentError
from cprs_integrations.serving.app import create_app
from cprs_integrations.serving.logs import LOGGER, configure
from cprs_integrations.serving.service import Service
from cprs_integrations.serving.settings import Settings

_SWITCH = 0.001  # seconds for which a thread may keep the others, and with them the probes, from running Python
_READING = 10  # seconds that clients have for their last answers, once all are made


class Server(uvicorn.Server):
    """Answers 503 to new requests once it is told to stop, and stops when those it has taken are answered.

    A second signal stops it at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where only then: who reads the line may ask at once."""
        await super().startup(sockets)
        for listening in sockets or ():
            address, port = listening.getsockname()[:2]
            LOGGER.info("serving at http://%s:%s", f"[{address}]" if ":" in address else address, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        if self._service.is_draining:
            os._exit(128 + sig)  # not by the signal itself, which the first process of a container would not notice
        self._service.is_draining = True

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until all is answered after a signal."""
        leaving = asyncio.create_task(self._leave())
        try:
            await super().serve(sockets)
        finally:
            leaving.cancel()

    async def _leave(self) -> None:
        while not (self._service.is_draining and self._service.taken == 0):
            await asyncio.sleep(0.05)
        self.should_exit = True


def check_open(host: str, settings: Settings) -> None:
    """Refuse to let everybody in by mistake.

    Raises:
        ArgumentError: others than this machine reach the address, and there is no token.
    """
    if settings.token is None and not _is_loopback(host):
        raise ArgumentError(f"--host {host} can be reached by others: set CPRS_TOKEN to a secret, or say --no-token")


def serve(host: str, port: int, settings: Settings, cache_mb: int = 0, **critic: Any) -> None:
    """Load a critic, then serve it until a signal.

    Args:
        host: address to listen at.
        port: 0: any that is free; the log tells.
        settings: limits.
        cache_mb: megabytes (of 2**20 bytes) for units and tokens of documents that come again; 0: nothing is remembered.
        **critic: arguments of `CPRSEngine.from_pretrained`.

    Raises:
        CPRSError: the critic cannot be loaded; nothing was served.
        OSError: the address cannot be used.
    """
    engine = CPRSEngine.from_pretrained(**critic)
    engine.cache = DocumentCache(cache_mb * 2**20) if cache_mb else None
    configure()
    app = create_app(engine, settings)
    listening = _bound(host, port)
    sys.setswitchinterval(_SWITCH)
    gc.freeze()  # what is loaded stays: collecting garbage need not look at it, and is over sooner
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=_READING,
    )
    server = Server(config, app.state.service)
    try:
        server.run([listening])
    finally:
        listening.close()
    if not server.started:
        sys.exit(1)
    LOGGER.info("stopped")


def _bound(host: str, port: int) -> socket.socket:
    """A socket of the address, before the server starts: an address in use is an error of its own, with its own message."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
