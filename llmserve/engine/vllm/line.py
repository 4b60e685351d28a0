"""A line of our own to the engine core, beside vLLM's.

vLLM's engine core can serve several front ends: it connects to the sockets of each, and
answers a request where it came from. It is told of a second front end here, and that is us
as well, with sockets that the event loop reads and writes itself (``zmtp.py``). vLLM's own
sockets stay, and whatever the engine core says there is read as before.

The slow twin is vLLM's ``AsyncMPClient`` with nothing else: so it is where this cannot be.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.v1.engine import EngineCoreRequestType, core_client
from vllm.v1.engine.exceptions import EngineDeadError

from llmserve.engine.vllm.zmtp import Message, Peer

log = logging.getLogger(__name__)

SECOND = 1
"""Who we are to the engine core: vLLM's own client is number 0."""

_ABORT = EngineCoreRequestType.ABORT.value
_CONNECT_SECONDS = 5.0
_LAUNCH = "launch_core_engines"
"""What vLLM's client calls with the addresses that the engine core is to connect to."""


class Line:
    """Sockets that wait for one engine core. ``inputs`` carries requests to it, ``outputs``
    what it has to say. ``told``: whether an engine core knows of them. Raises ``OSError``
    where there cannot be any."""

    def __init__(self) -> None:
        self.told = False
        self._folder = tempfile.TemporaryDirectory(
            prefix="llmserve-line-", dir=envs.VLLM_RPC_BASE_PATH
        )
        self._sockets: dict[str, socket.socket] = {}
        try:
            for name in ("inputs", "outputs"):
                self._sockets[name] = socket.socket(socket.AF_UNIX)
                self._sockets[name].bind(str(self._path(name)))
                self._sockets[name].listen(1)
        except OSError:
            self.close()
            raise

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def close(self) -> None:
        """Wait for nobody any more; idempotent. What is connected stays."""
        while self._sockets:
            self._sockets.popitem()[1].close()
        self._folder.cleanup()

    @contextmanager
    def offered(self) -> Iterator[None]:
        """An engine core that vLLM starts in this block is told of this line. vLLM has no
        setting for that; one function is replaced for the time of the block. Without an
        engine at its end nobody is waited for."""
        launch = getattr(core_client, _LAUNCH)

        def launching(config: Any, executor: Any, stats: Any, addresses: Any) -> Any:
            # Any other address says that the engine core may be on another machine.
            if addresses.inputs[0].startswith("ipc://"):
                addresses.inputs.append(f"ipc://{self._path('inputs')}")
                addresses.outputs.append(f"ipc://{self._path('outputs')}")
                self.told = True
            return launch(config, executor, stats, addresses)

        setattr(core_client, _LAUNCH, launching)
        try:
            yield
        except BaseException:
            self.close()
            raise
        finally:
            setattr(core_client, _LAUNCH, launch)

    async def connect(
        self, received: Callable[[list[Message]], None], lost: Callable[[Exception | None], None]
    ) -> tuple[Peer, Peer]:
        """The engine core at the other end of ``inputs`` and ``outputs``. Raises
        ``TimeoutError`` when it does not come, ``OSError`` and ``ProtocolError``."""
        # What comes on the line for inputs says only that somebody is there, and its end comes
        # with that of the other one, on which there may still be something to read.
        ends = {
            "inputs": Peer(b"ROUTER", _ignore, _ignore),
            "outputs": Peer(b"PULL", received, lost),
        }
        peers: list[Peer] = []
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                for name, peer in ends.items():
                    peers.append(await self._accept(name, peer))
                    await peer.ready
            if any(peer.closing for peer in peers):
                raise ConnectionResetError("the engine core has closed its line")
        except BaseException:
            for peer in peers:
                peer.close()
            raise
        finally:
            self.close()
        return peers[0], peers[1]

    async def _accept(self, name: str, peer: Peer) -> Peer:
        loop = asyncio.get_running_loop()
        self._sockets[name].setblocking(False)
        connection, _ = await loop.sock_accept(self._sockets[name])
        await loop.connect_accepted_socket(lambda: peer, connection)
        return peer


def open_line(config: Any) -> Line | None:
    """A line for the engine of this configuration: if it is one process on this machine that
    only answers requests, and not several, or one that has more to say."""
    parallel = config.parallel_config
    several = parallel.data_parallel_size > 1 or parallel.nnodes > 1
    if several or parallel.enable_fault_tolerance or parallel.enable_elastic_ep:
        return None
    try:
        return Line()
    except OSError as error:
        log.warning("there is no short line to the engine core: %s", error)
        return None


def _ignore(_: object) -> None:
    """Nothing follows from it."""


class Input:
    """In the place of the zmq socket to which vLLM's client writes."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def send_multipart(self, frames: Sequence[Any], *, copy: bool) -> _Sent:  # noqa: ARG002
        """The first frame says to which engine core, and there is one. Raises
        ``EngineDeadError`` when it has gone; what it was to abort, it has aborted then."""
        if not self._peer.closing:
            self._peer.send(frames[1:])
        elif frames[1] != _ABORT:
            raise EngineDeadError()
        return _SENT


class _Sent:
    """Awaited where vLLM waits for zmq to take a message."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_SENT = _Sent()
