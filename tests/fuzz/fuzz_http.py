"""A long search for requests that break the server, with the fake engine behind it.

    python -m tests.fuzz.fuzz_http [SECONDS] [SEED]

sends spoiled bodies and malformed requests (those of ``tests/http/test_fuzz.py``, without
end) for SECONDS (60), counting up from SEED (0). A finding is an answer that the tests
would not take; it is shown with the seed that makes it again. Ends with status 1 when
there is one.
"""

from __future__ import annotations

import random
import sys
import time

from llmserve.engine.fake import Script
from tests.http.harness import App, running
from tests.http.raw import connected
from tests.http.test_fuzz import BODIES, assert_honest, mutated, spoiled_bytes

SECONDS = 60.0


def send_body(app: App, chance: random.Random) -> None:
    """One spoiled body, one time in three to a streaming route."""
    path = chance.choice(sorted(BODIES))
    text = mutated(BODIES[path], chance)
    if chance.random() < 0.3:
        path = path.replace("/generate", "/generate/stream")
        text = text.replace('"stream": false', '"stream": true')
    content = text.encode("utf-8", "surrogatepass")
    reply = app.post(path, content=content, headers={"content-type": "application/json"})
    assert_honest(path, reply, text)
    assert "The server failed to answer" not in reply.text, text


def send_bytes(app: App, chance: random.Random) -> None:
    """One malformed request."""
    data = spoiled_bytes(chance)
    with connected(app.port) as raw:
        raw.try_send(data)
        raw.socket.settimeout(0.01)
        try:
            answer = raw.socket.recv(65_536)
        except OSError:
            return
    assert not answer.startswith(b"HTTP/1.1 500"), data


def main(arguments: list[str]) -> int:
    seconds = float(arguments[0]) if arguments else SECONDS
    first = seed = int(arguments[1]) if len(arguments) > 1 else 0
    found = 0
    script = Script(tasks=frozenset({"generate", "embed"}), reply_words=4)
    with running(script, server={"request_timeout_s": 5, "header_timeout_s": 1}) as app:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            chance = random.Random(seed)  # noqa: S311
            try:
                (send_bytes if seed % 3 == 0 else send_body)(app, chance)
            except Exception as finding:
                found += 1
                print(f"seed {seed}: {finding}")  # noqa: T201
            seed += 1
        ready = app.get("/readyz").status_code == 200
    print(f"{seed - first} requests, {found} findings, ready in the end: {ready}")  # noqa: T201
    return 0 if ready and not found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
