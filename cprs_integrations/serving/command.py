"""`cprs serve`: an engine behind HTTP."""

import ipaddress
import json
import logging
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from cprs_integrations.engine import CPRSEngine
from cprs_integrations.errors import CPRSError, ModelError

FAILED = 2


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; another than loopback needs CPRS_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one and says which.", min=0, max=65535)] = 8000,
    critic: Annotated[str | None, typer.Option(help="Folder or id of a critic; default: the one that ships.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0,cuda:1 ...; default: the critic chooses.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 ...; default: the critic chooses.")] = None,
    cache_mb: Annotated[int, typer.Option(help="Remember the tokens of documents in so much memory.", min=0)] = 0,
    no_token: Annotated[bool, typer.Option("--no-token", help="Serve anybody who reaches the address.")] = False,
) -> None:
    """Serve compression over HTTP: POST /v1/compress, a page to try it at /, OpenAPI at /docs.

    Limits and the token come from the environment: CPRS_TOKEN, CPRS_MAX_QUEUE and others, see docs/deploy.md.
    """
    try:
        import uvicorn

        from cprs_integrations.serving import Settings, create_app

        settings = Settings.from_environment()
        if settings.token is None and not (no_token or _is_loopback(host)):
            raise CPRSError(f"--host {host} can be reached by others: set CPRS_TOKEN to a secret, or say --no-token")
        app = create_app(CPRSEngine(_critic(critic, device, dtype), _cache(cache_mb)), settings)
    except (CPRSError, OSError) as error:
        sys.stderr.write(f"cprs: {error}\n")
        sys.exit(FAILED)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    class Server(uvicorn.Server):
        """Says where it listens, and takes no new work once it was told to stop."""

        async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
            await super().startup(sockets)  # type: ignore[arg-type]
            for listening in self.servers if self.started else ():
                name, number = listening.sockets[0].getsockname()[:2]
                sys.stderr.write(json.dumps({"event": "serving", "url": f"http://{_in_url(name)}:{number}"}) + "\n")

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.desk.is_stopping = True
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=round(settings.request_seconds) + 1,
    )  # fmt: skip
    server = Server(config)
    server.run()
    if not server.started:
        sys.exit(FAILED)


def _critic(critic: str | None, device: str | None, dtype: str | None):  # type: ignore[no-untyped-def]  # noqa: ANN202
    from cprs_integrations.critics import load_critic

    if critic is not None and critic.startswith((".", "/")) and not Path(critic).exists():
        raise ModelError(f"{critic} does not exist; give the folder of a critic")
    return load_critic(critic, device=device, dtype=dtype)


def _cache(megabytes: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
    from cprs_integrations.caching import DocumentCache

    return DocumentCache(megabytes * 2**20) if megabytes else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address
