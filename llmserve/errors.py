"""Every error that a client or an operator can see, in one tree.

    LlmserveError
    ├── ConfigError                 a setting is wrong (never reaches HTTP)
    ├── SetupError                  a model or a component cannot be obtained (likewise)
    ├── modelfile.ModelFileError    422 a model file cannot be described (its own small tree)
    ├── ClientError                 the request is at fault
    │   ├── InvalidRequest              400
    │   │   ├── PromptTooLong               400  context_length_exceeded
    │   │   └── Unsupported                 400  unsupported_parameter, unsupported_value
    │   ├── Unauthenticated             401  invalid_api_key
    │   ├── Forbidden                   403  insufficient_permissions, model_not_allowed
    │   ├── NotFound                    404
    │   │   └── ModelNotFound               404  model_not_found
    │   ├── MethodNotAllowed            405
    │   ├── RequestTimeout              408  the body did not arrive in time
    │   ├── BodyTooLarge                413  request_too_large
    │   ├── UnsupportedMediaType        415
    │   ├── HeadersTooLarge             431  headers_too_large
    │   ├── RateLimited                 429  rate_limit_exceeded
    │   │   └── QuotaExceeded               429  insufficient_quota
    │   └── Cancelled                   499  request_cancelled
    └── ServerError                 the server is at fault
        ├── InternalError               500
        ├── NotImplementedHere          501  this model cannot do that
        ├── Unavailable                 503
        │   ├── Overloaded                  503  server_is_overloaded
        │   ├── NotReady                    503  model_not_ready
        │   ├── Draining                    503  server_shutting_down
        │   ├── EngineDied                  503  engine_died
        │   └── Aborted                     503  request_aborted
        └── DeadlineExceeded            504  deadline_exceeded
            └── QueueTimeout                504  queue_timeout

``type`` and ``code`` are OpenAI's words where OpenAI has one (openai-python retries 408,
409, 429 and every 5xx; ``retry_after`` becomes the ``Retry-After`` header).
"""

from __future__ import annotations

from collections.abc import Sequence


class LlmserveError(Exception):
    """Root of the tree. ``message`` is shown to the client as it is: it names the field,
    the value and what is allowed, and never a secret, a path or a stack trace.

    ``param`` is the request field at fault; ``retry_after`` seconds to wait before
    trying again, ``None`` when trying again is no use.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    retryable: bool | None = None
    """Sent as ``x-should-retry``, which openai-python obeys; ``None`` leaves it to the
    client, which goes by the status."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class ConfigError(LlmserveError):
    """A setting is wrong. The message names its source (flag, variable, or file and
    line), the key, the value and what is allowed."""


class SetupError(LlmserveError):
    """Something that serving needs cannot be obtained. The message says what to do."""


class ClientError(LlmserveError):
    """The request is at fault."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(ClientError):
    """A field is missing, malformed or out of its range."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param)
        if code is not None:
            self.code = code


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room for an answer. Both numbers are in the message."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, max_model_len: int, *, param: str = "prompt") -> None:
        super().__init__(
            f"The prompt has {prompt_tokens} tokens; this model's context holds "
            f"{max_model_len} tokens for prompt and answer together.",
            param=param,
        )


class Unsupported(InvalidRequest):
    """A field or value that this server knows of and does not support."""

    code = "unsupported_parameter"


class Unauthenticated(ClientError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(ClientError):
    """The key is valid, and not for this."""

    status = 403
    type = "permission_error"
    code = "insufficient_permissions"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param)
        if code is not None:
            self.code = code


class NotFound(ClientError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """``served`` are the names that would have been right."""

    code = "model_not_found"

    def __init__(self, name: str, served: Sequence[str]) -> None:
        super().__init__(
            f"The model {name[:100]!r} does not exist. Served here: {', '.join(served)}.",
            param="model",
        )


class MethodNotAllowed(ClientError):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(ClientError):
    status = 408
    code = "request_timeout"


class BodyTooLarge(ClientError):
    status = 413
    code = "request_too_large"


class UnsupportedMediaType(ClientError):
    status = 415
    code = "unsupported_media_type"


class HeadersTooLarge(ClientError):
    status = 431
    code = "headers_too_large"


class RateLimited(ClientError):
    """This caller is over one of its limits, or over its share of a busy server."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QuotaExceeded(RateLimited):
    """The budget of the day is used up; trying again soon is no use."""

    type = "insufficient_quota"
    code = "insufficient_quota"
    retryable = False


class Cancelled(ClientError):
    """Somebody with the right to do so cancelled this request. 499 is nginx's status for
    a request that its client has ended; no SDK retries it."""

    status = 499
    type = "request_cancelled"
    code = "request_cancelled"
    retryable = False

    def __init__(self) -> None:
        super().__init__("The request was cancelled.")


class ServerError(LlmserveError):
    """The server is at fault."""


class InternalError(ServerError):
    code = "internal_error"

    def __init__(self, message: str = "The server failed to answer this request.") -> None:
        super().__init__(message)


class NotImplementedHere(ServerError):
    """The model or the engine at hand cannot do what the route is for."""

    status = 501
    code = "not_supported_by_model"


class Unavailable(ServerError):
    """The server cannot take this request now; a later try can succeed."""

    status = 503
    type = "service_unavailable_error"
    code = "service_unavailable"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = 1.0
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)


class Overloaded(Unavailable):
    code = "server_is_overloaded"


class NotReady(Unavailable):
    code = "model_not_ready"


class Draining(Unavailable):
    code = "server_shutting_down"


class EngineDied(Unavailable):
    """The engine core died while this request was running."""

    code = "engine_died"

    def __init__(
        self,
        message: str = "The engine stopped while it worked on this request. It is being restarted.",
        *,
        retry_after: float | None = 5.0,
    ) -> None:
        super().__init__(message, retry_after=retry_after)


class Aborted(Unavailable):
    """The engine ended this request before it was finished."""

    code = "request_aborted"

    def __init__(self) -> None:
        super().__init__("The engine ended this request before it was finished.")


class DeadlineExceeded(ServerError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class QueueTimeout(DeadlineExceeded):
    """The request waited for its turn for too long; the engine never saw it."""

    code = "queue_timeout"
