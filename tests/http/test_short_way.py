"""What an engine pushes reaches the client as what it yields does."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmserve.engine.fake import FakeEngine
from llmserve.engine.protocol import PushText
from llmserve.types import Chunk, FinishReason, GenerateRequest, Meter
from tests.http.harness import App, running

ODD = (
    *("", '"', "\\", "\\n", "\n", "\r\n", "\0\x1f\x7f", "\x85", "\u2028\u2029", "\ufeff", "\ufffd"),
    *("é", "東京", "🙂", "👩\u200d🚀", "e\u0301", "\U0010ffff", "</script>", "%d %s %%", "{0}"),
    *("data: x\n\nid: 7\nevent: done\n\n", "null", '{"index":1}'),
)
Say = tuple[str, int, bool]
"""A text, its number of tokens, and whether it is to be pushed."""


class Told(FakeEngine):
    """Says what the prompt says: a list of ``Say``."""

    pushed = 0

    async def generate(
        self, request: GenerateRequest, meter: Meter, push: PushText | None = None
    ) -> AsyncGenerator[Chunk, None]:
        if request.prompt == "Hello":  # By which the server finds out that it works.
            async with aclosing(super().generate(request, meter)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        yield Chunk(0, "", (0,))
        for text, tokens, short in json.loads(request.prompt or ""):
            if short:
                assert push is not None
                assert push(text, tokens)
                self.pushed += 1
            else:
                yield Chunk(0, text, (0,) * tokens)
        yield Chunk(0, "", (0,), FinishReason.STOP)


def stream(app: App, texts: list[Say]) -> tuple[list[bytes], dict[str, Any]]:
    """The token events as they are, and the data of the end without ids and times."""
    sent = app.post("/generate/stream", json={"prompt": json.dumps(texts)}).content
    *tokens, end, rest = sent.split(b"\n\n")
    assert rest == b""
    head, _, data = end.partition(b"\ndata: ")
    assert head == b"id: %d\nevent: done" % len(tokens)
    return tokens, without_times(json.loads(data))


def without_times(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in ("id", "timings")}


def test_a_pushed_text_is_the_event_of_a_chunk() -> None:
    engine = Told()
    text = st.text(max_size=20) | st.sampled_from(ODD)
    say = st.tuples(text, st.integers(0, 3), st.booleans())

    with running(make_engine=lambda _: engine) as app:

        @settings(max_examples=100, deadline=None, derandomize=True)
        @example([(text, 1, True) for text in ODD])
        @given(st.lists(say, max_size=8))
        def same(texts: list[Say]) -> None:
            yielded = [(text, tokens, False) for text, tokens, _ in texts]
            short, long = stream(app, texts), stream(app, yielded)
            assert short == long
            said = [json.loads(event.partition(b"\ndata: ")[2]) for event in short[0]]
            assert [(data["text"], data["tokens"]) for data in said[1:-1]] == [
                (text, tokens) for text, tokens, _ in texts
            ]

        same()
    assert engine.pushed > 100


def test_a_pushed_text_is_in_the_reply_that_is_not_streamed() -> None:
    def reply(app: App, short: bool) -> dict[str, Any]:
        texts = [(text, 1, short) for text in ODD]
        return without_times(app.post("/generate", json={"prompt": json.dumps(texts)}).json())

    with running(make_engine=Told) as app:
        pushed, yielded = reply(app, True), reply(app, False)
    assert pushed == yielded
    assert pushed["text"] == "".join(ODD)
