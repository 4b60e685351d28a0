"""llmserve over a scripted engine whose tokens come at a given pace.

``llmserve serve --engine fake`` is as fast as it can be; here the engine does nothing but
wait, so that whatever delays a stream is the front end's own doing.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import click

from bench.cases import MODEL
from bench.servers import Server
from bench.values import OURS

CONTEXT = 32_768
SPARE_CONNECTIONS = 500
TEXT = "word " * 2000
"""One text for all: what is measured is not what they say."""


def start_scripted(
    seconds_per_token: float, streams: int, folder: Path, *, prefill_seconds: float = 0.0
) -> Server:
    """Start it for so many streams at once, without waiting."""
    command = [sys.executable, "-m", "bench.scripted", str(seconds_per_token), str(streams)]
    command += [str(folder / "scripted.db"), "--prefill", str(prefill_seconds)]
    return Server(OURS, command, "/readyz", folder / "scripted.log")


@click.command()
@click.argument("seconds_per_token", type=float)
@click.argument("streams", type=int)
@click.argument("state", type=click.Path(path_type=Path))
@click.option("--prefill", type=float, required=True)
@click.option("--port", type=int, required=True)
def main(seconds_per_token: float, streams: int, state: Path, prefill: float, port: int) -> None:
    """Serve, as ``llmserve serve`` does, over this engine."""
    import uvicorn

    from llmserve.app import build_app, build_services
    from llmserve.engine.fake import FakeEngine, Reply, Script
    from llmserve.engine.protocol import Engine, Report
    from llmserve.http.connection import protocol_class
    from llmserve.process import connections_within
    from llmserve.settings import Settings

    connections = connections_within(streams + SPARE_CONNECTIONS)
    script = Script(
        model=MODEL,
        max_model_len=CONTEXT,
        seconds_per_token=seconds_per_token,
        prefill_seconds=prefill,
        max_running=connections,
        replies=(Reply("", TEXT),),
        kv_capacity_tokens=connections * CONTEXT,
    )

    async def make(_: Report) -> Engine:
        return FakeEngine(script)

    settings = Settings.model_validate(
        {
            "runtime": {"engine": "fake"},
            "model": {"served_names": [MODEL]},
            "server": {"max_connections": connections},
            "admission": {"max_running": connections, "reserved_share": 0},
        }
    )
    config = uvicorn.Config(
        build_app(build_services(settings, make, state_path=state)),
        http=protocol_class(settings.server, connections),
        interface="asgi3",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    listener = socket.create_server(("127.0.0.1", port), backlog=2048)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
