"""Which request fields this server takes, for each operation of the OpenAI face.

An **allowlist**: a field is here because vLLM acts on it, or because it is a hint that
never changes an answer; every other field is refused by its name. Refusing is the
promise (a field that is accepted and does nothing is a lie) and it is the defence: the
fields that have stalled or crashed engines through the front door never reach one.

``check_fields`` also gives every value its type and bounds, so that no wrong type ends
as an error of the server's. What only the engine knows (the context length, the size of
the vocabulary) is checked there.
"""

from llmserve.http.openai_fields.check import check_fields

__all__ = ["check_fields"]
