"""The settings tree: every knob of the server, its default, its limits, its meaning.

Frozen. Values come from flags, the environment, a YAML file and these defaults, in that
order; ``settings_load`` merges them and remembers where each one came from.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address or name."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelSettings(_Section):
    """What is served, and under which names."""

    source: str = Field(
        "demo",
        min_length=1,
        description="Hugging Face id, local folder, .gguf file, or 'demo'.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hugging Face id.")
    served_names: tuple[str, ...] = Field(
        (),
        description="Names clients ask for; the first one is shown in replies. "
        "Default: the last part of the source.",
    )
    default_names: tuple[str, ...] = Field(
        ("default", "dummy", "tgi"),
        description="Further names that mean the served model: what clients send that "
        "were given no model. The server's own base URL counts as well.",
    )
    version: str = Field("1", min_length=1, description="Version shown in native replies.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Read it first."
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The names clients ask for: those configured, or the last part of the source."""
        if self.served_names:
            return self.served_names
        if self.source == "demo":
            return ("SmolLM2-135M-Instruct", "demo")
        return (self.source.rstrip("/").rpartition("/")[2].removesuffix(".gguf"),)


class ServerSettings(_Section):
    """The listening socket and the life of a connection."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 picks a free one.")
    cors_origins: tuple[str, ...] = Field((), description="Origins that browsers may call from.")
    request_timeout_s: Seconds = Field(
        600,
        description="Longest time for one request, from its arrival to its last token, and "
        "the most that a client can ask for with timeout_s; 0: none.",
    )
    generation_timeout_s: Seconds = Field(
        0, description="Longest time in the engine, waiting in the queue aside; 0: none."
    )
    first_chunk_wait_s: Seconds = Field(
        1.0,
        description="How long a stream waits for its first chunk before it commits to "
        "status 200, so that early failures keep their real status.",
    )
    keep_alive_s: Seconds = Field(
        15, description="Silence after which a stream sends a comment; 0: never."
    )
    slow_reader_timeout_s: Seconds = Field(
        60,
        description="A stream that has waited this long for its client to read is ended; 0: never.",
    )
    drain_grace_s: Seconds = Field(
        0,
        description="After SIGTERM, time in which readiness is off and requests are still "
        "taken, for load balancers to notice; then new ones get 503.",
    )
    drain_timeout_s: Seconds = Field(
        30, description="Time that running requests get to finish after SIGTERM."
    )
    body_timeout_s: Seconds = Field(30, description="Time for a request body to arrive; 0: none.")
    header_timeout_s: Seconds = Field(
        10, description="Time for a request line and its headers to arrive; 0: none."
    )
    max_header_bytes: Count = Field(
        32 * 2**10, description="Largest request line and headers together."
    )
    max_connections: Count = Field(
        8192, description="Most open connections; further ones get 503 and are closed."
    )
    docs: bool = Field(True, description="Serve /docs and /openapi.json.")


class LimitSettings(_Section):
    """Bounds on what one request may ask for."""

    max_body_bytes: Count = Field(8 * 2**20, description="Largest request body.")
    max_json_depth: Count = Field(64, description="Deepest nesting of a JSON body.")
    max_n: Count = Field(16, description="Most choices of one request.")
    max_logprobs: int = Field(20, ge=0, description="Most alternatives reported for a token.")
    max_stop_strings: Count = Field(16, description="Most stop strings.")
    max_stop_chars: Count = Field(1024, description="Longest stop string, in characters.")
    max_logit_bias: Count = Field(1024, description="Most logit_bias entries.")
    max_grammar_bytes: Count = Field(
        64 * 2**10, description="Largest JSON schema, regex or choice list, in bytes."
    )
    max_schema_depth: Count = Field(32, description="Deepest nesting of a JSON schema.")
    max_schema_nodes: Count = Field(
        2000, description="Most subschemas, properties and enum values of a JSON schema."
    )
    max_regex_states: Count = Field(
        20_000, description="Largest regex, counted repeats written out, in states."
    )
    grammar_timeout_s: Seconds = Field(
        10, description="Time for a grammar to compile; 0: none, and no trial compilation."
    )
    max_messages: Count = Field(4096, description="Most messages of a conversation.")
    max_tools: Count = Field(128, description="Most tools offered to the model.")


class AdmissionSettings(_Section):
    """How much work is taken on at once, and how much may wait."""

    max_running: Count | None = Field(
        None,
        description="Most requests in the engine at once. Default: as many as the engine "
        "runs together (max_num_seqs), so that waiting happens where it is fair.",
    )
    max_queue: int = Field(
        512, ge=0, description="Most requests that wait for their turn; the next one gets 503."
    )
    max_running_prompt_tokens: Count = Field(
        4_000_000, description="Most prompt tokens in the engine at once, estimated."
    )
    max_queued_prompt_tokens: Count = Field(
        4_000_000, description="Most prompt tokens that wait, estimated."
    )
    reserved_share: float = Field(
        0.125,
        ge=0,
        le=0.9,
        description="Part of the places, running and waiting, that one key "
        "alone cannot take, so that the next key finds some.",
    )
    queue_timeout_s: Seconds = Field(
        60, description="Longest wait for a turn, then 504; 0: as long as the request may take."
    )


class AuthSettings(_Section):
    """Who may call. With no key, everybody who reaches the port."""

    api_keys: tuple[SecretStr, ...] = Field(
        (),
        description="Keys with every right and no limit, besides those of `llmserve keys`. Once "
        "there is any key, all routes but the health probes need one.",
    )
    allow_anonymous_network: bool = Field(
        False,
        description="Listen on other than loopback addresses although there is no key: "
        "everybody who reaches the port may use the server.",
    )
    allow_query_key: bool = Field(
        False,
        description="Take ?api_key=KEY as well, for browsers' EventSource. URLs end up in "
        "histories and in the logs of proxies.",
    )
    open_metrics: bool = Field(False, description="Serve /metrics without a key.")
    open_docs: bool = Field(False, description="Serve /docs and /openapi.json without a key.")
    salt_prefix_cache: bool = Field(
        False,
        description="Keep the prefix caches of different keys apart, so that nobody can "
        "learn from timing what others have asked.",
    )

    @field_validator("api_keys")
    @classmethod
    def _no_empty_key(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(not key.get_secret_value().strip() for key in keys):
            raise ValueError("an API key must not be empty")
        return keys


class StateSettings(_Section):
    """Where keys and usage are kept."""

    url: SecretStr | None = Field(
        None,
        description="sqlite:///PATH, or postgresql://… to share keys, usage and limits between "
        "replicas. Default: a SQLite file in the user's state folder.",
    )
    min_free_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Free space on the disk of a SQLite file below which the server is not ready.",
    )


class CacheSettings(_Section):
    """Answers to deterministic requests, kept in memory."""

    enabled: bool = Field(False, description="Answer identical greedy or seeded requests again.")
    max_bytes: Count = Field(64 * 2**20, description="Memory for kept answers.")
    max_age_s: Seconds = Field(3600, description="How long an answer is kept; 0: for good.")
    shared: bool = Field(False, description="Share answers between keys.")


class MetricsSettings(_Section):
    """Prometheus metrics."""

    enabled: bool = Field(True, description="Serve /metrics.")


class LoggingSettings(_Section):
    """What goes to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged."
    )
    format: Literal["text", "json"] = Field("text", description="Shape of a log line.")
    access: bool = Field(True, description="Log one line for each request.")


class RuntimeSettings(_Section):
    """Which engine runs, on what, and what happens when it dies."""

    engine: Literal["vllm", "fake"] = Field(
        "vllm", description="'fake' answers from a script, for front-end work without a model."
    )
    device: Literal["auto", "cpu"] = Field("auto", description="'cpu' ignores GPUs.")
    cpu_kv_cache_gib: Count = Field(1, description="Memory for the KV cache on a CPU, in GiB.")
    restart_first_s: Seconds = Field(1, description="Wait before the first restart of an engine.")
    restart_max_s: Seconds = Field(60, description="Longest wait between restarts; it doubles.")
    max_restarts: int = Field(
        10, ge=0, description="Failed starts in a row after which the server gives up."
    )
    stall_timeout_s: Seconds = Field(
        60,
        description="Requests run and the engine makes no step for this long: not ready; 0: off.",
    )
    stall_restart_s: Seconds = Field(
        300, description="The same for this long: the engine is restarted; 0: never."
    )


class CatalogSettings(_Section):
    """Model files that can be looked into over HTTP, loaded or not."""

    folders: tuple[str, ...] = Field(
        (), description="Folders of models that GET /models lists; nothing outside is reachable."
    )
    hub_cache: bool = Field(True, description="List the models of the Hugging Face cache as well.")


class Settings(_Section):
    """The whole tree. ``engine`` holds arguments of vLLM itself, under vLLM's own names
    (``tensor_parallel_size``, ``max_model_len``, …); they are checked against the
    installed vLLM when it is there."""

    model: ModelSettings = ModelSettings()
    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    admission: AdmissionSettings = AdmissionSettings()
    auth: AuthSettings = AuthSettings()
    state: StateSettings = StateSettings()
    cache: CacheSettings = CacheSettings()
    metrics: MetricsSettings = MetricsSettings()
    logging: LoggingSettings = LoggingSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    catalog: CatalogSettings = CatalogSettings()
    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM engine arguments.")
