"""The allowlist of request fields: what passes, what is refused, and in which words."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from llmserve.errors import ClientError, InvalidRequest, Unsupported
from llmserve.http.openai_fields import check_fields
from llmserve.settings import LimitSettings
from llmserve.types import Operation

LIMITS = LimitSettings()
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
USER = [{"role": "user", "content": "Hi"}]

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Weather?", "name": "bob"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "20 C"},
    ],
    "temperature": 0.5,
    "top_p": 1,
    "top_k": -1,
    "min_p": 0,
    "n": 2,
    "max_tokens": 10,
    "min_tokens": 1,
    "stop": ["a", "b"],
    "seed": -1,
    "logprobs": True,
    "top_logprobs": 3,
    "logit_bias": {"5": -100},
    "presence_penalty": -2,
    "frequency_penalty": 2,
    "repetition_penalty": 1.1,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    "stream": True,
    "stream_options": {"include_usage": True},
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "chat_template_kwargs": {"enable_thinking": False},
    "priority": -5,
    "user": "u",
    "metadata": {"k": "v"},
    "store": False,
    "service_tier": "auto",
    "modalities": ["text"],
}
BODIES: dict[Operation, dict[str, Any]] = {
    Operation.CHAT: CHAT,
    Operation.COMPLETION: {
        "prompt": ["a", "b"],
        "max_tokens": 0,
        "echo": True,
        "logprobs": 1,
        "stop": "x",
        "stop_token_ids": [1],
        "structured_outputs": {"regex": "[a-z]+"},
    },
    Operation.RESPONSES: {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "20 C"},
            {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": None},
        ],
        "instructions": "Be brief.",
        "max_output_tokens": 10,
        "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}],
        "tool_choice": "required",
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["message.output_text.logprobs"],
        "truncation": "auto",
        "store": False,
    },
    Operation.MESSAGES: {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}},
                    {"type": "tool_result", "tool_use_id": "t", "content": "20 C"},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "weather", "input": {}}],
            },
        ],
        "max_tokens": 2000,
        "system": [{"type": "text", "text": "Be brief."}],
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "weather"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stop_sequences": ["x"],
        "metadata": {"user_id": "u"},
    },
    Operation.COUNT_TOKENS: {"model": "m", "messages": USER, "system": "Be brief."},
    Operation.EMBEDDINGS: {"input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 8},
    Operation.TOKENIZE: {"messages": USER, "add_generation_prompt": True},
    Operation.DETOKENIZE: {"tokens": [1, 2, 3]},
}


def check(operation: Operation, body: dict[str, Any], limits: LimitSettings = LIMITS) -> None:
    check_fields(operation, body, limits)


def refusal(operation: Operation, **fields: Any) -> InvalidRequest:
    """The error for a good body with these fields put into it."""
    body = copy.deepcopy(BODIES[operation]) | fields
    with pytest.raises(InvalidRequest) as caught:
        check(operation, body)
    return caught.value


@pytest.mark.parametrize("operation", list(Operation))
def test_a_good_body_passes_and_is_not_changed(operation: Operation) -> None:
    body = copy.deepcopy(BODIES[operation])
    check(operation, body)
    without_nulls = copy.deepcopy(BODIES[operation])
    if operation is Operation.CHAT:
        del without_nulls["messages"][2]["content"]
    if operation is Operation.RESPONSES:
        del without_nulls["input"][3]["encrypted_content"]
    assert body == without_nulls


def test_a_null_field_is_an_absent_field() -> None:
    body = {"messages": USER, "stop": None, "n": None, "functions": None, "tools": None}
    check(Operation.CHAT, body)
    assert body == {"messages": USER}


def test_a_reply_can_be_sent_back_as_the_sdk_dumps_it() -> None:
    reply = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    body = {"messages": [*copy.deepcopy(USER), reply]}
    check(Operation.CHAT, body)
    assert body["messages"][1] == {"role": "assistant", "content": "Hi"}


@pytest.mark.parametrize(
    ("operation", "field", "value"),
    [
        (Operation.CHAT, "best_of", 1),
        (Operation.CHAT, "functions", []),
        (Operation.CHAT, "function_call", "auto"),
        (Operation.CHAT, "audio", {}),
        (Operation.CHAT, "prediction", {}),
        (Operation.CHAT, "web_search_options", {}),
        (Operation.CHAT, "chat_template", "x"),
        (Operation.CHAT, "kv_transfer_params", {}),
        (Operation.CHAT, "cache_salt", "x"),
        (Operation.CHAT, "vllm_xargs", {}),
        (Operation.CHAT, "mm_processor_kwargs", {}),
        (Operation.CHAT, "media_io_kwargs", {}),
        (Operation.CHAT, "request_id", "x"),
        (Operation.CHAT, "guided_json", {}),
        (Operation.CHAT, "use_beam_search", True),
        (Operation.COMPLETION, "best_of", 2),
        (Operation.COMPLETION, "suffix", "x"),
        (Operation.COMPLETION, "prompt_embeds", "x"),
        (Operation.RESPONSES, "previous_response_id", "r"),
        (Operation.RESPONSES, "conversation", "c"),
        (Operation.RESPONSES, "prompt", {"id": "p"}),
        (Operation.MESSAGES, "mcp_servers", []),
        (Operation.MESSAGES, "kv_transfer_params", {}),
        (Operation.EMBEDDINGS, "messages", []),
    ],
)
def test_known_fields_are_refused_by_name(operation: Operation, field: str, value: Any) -> None:
    error = refusal(operation, **{field: value})
    assert isinstance(error, Unsupported)
    assert error.code == "unsupported_parameter"
    assert error.param == field
    assert field in error.message


@pytest.mark.parametrize(
    ("operation", "fields", "param"),
    [
        (Operation.CHAT, {"modalities": ["text", "audio"]}, "modalities"),
        (Operation.CHAT, {"store": True}, "store"),
        (Operation.CHAT, {"service_tier": "flex"}, "service_tier"),
        (Operation.RESPONSES, {"store": True}, "store"),
        (Operation.RESPONSES, {"background": True}, "background"),
        (Operation.RESPONSES, {"include": ["file_search_call.results"]}, "include[0]"),
        (Operation.RESPONSES, {"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (Operation.RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        (Operation.CHAT, {"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        (Operation.CHAT, {"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        (
            Operation.CHAT,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
            "messages[0].content[0].type",
        ),
        (
            Operation.MESSAGES,
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
def test_known_values_are_refused_by_name(
    operation: Operation, fields: dict[str, Any], param: str
) -> None:
    error = refusal(operation, **fields)
    assert isinstance(error, Unsupported)
    assert (error.code, error.param) == ("unsupported_value", param)


def test_an_unknown_field_gets_the_names_it_may_be_a_slip_of() -> None:
    error = refusal(Operation.CHAT, temprature=1)
    assert not isinstance(error, Unsupported)
    assert (error.code, error.param) == ("unknown_parameter", "temprature")
    assert "temperature" in error.message
    nested = refusal(Operation.CHAT, stream_options={"include_usages": True})
    assert nested.param == "stream_options.include_usages"
    assert "include_usage" in nested.message


@pytest.mark.parametrize("operation", list(Operation))
def test_a_missing_field_is_named(operation: Operation) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(operation, {})
    assert caught.value.param in ("messages", "prompt", "input", "tokens")


BAD_VALUES: list[tuple[str, Any]] = [
    *[("temperature", value) for value in ("hot", True, -0.1, 2.1, float("nan"), [], {})],
    ("temperature", float("inf")),
    ("temperature", 10**400),
    *[("top_p", value) for value in (0, -1, 1.5, "1")],
    *[("top_k", value) for value in (-2, 1.0, True, 2**31)],
    *[("min_p", value) for value in (-0.1, 1.1)],
    *[("n", value) for value in (0, 17, 1.0, True, "2", 10**12)],
    *[("max_tokens", value) for value in (0, -1, 10**12, 1.5, True, "10")],
    ("max_completion_tokens", 0),
    *[("min_tokens", value) for value in (-1, 11, 10**12)],
    *[("presence_penalty", value) for value in (-2.1, 2.1, "x")],
    *[("repetition_penalty", value) for value in (0, -1, 11)],
    *[("seed", value) for value in (2**63, -(2**63) - 1, 1.5, "x")],
    *[("priority", value) for value in (2**31, 0.5, "high")],
    *[("stop", value) for value in (5, [5], [""], ["x"] * 17, "y" * 1025, {})],
    *[("stop_token_ids", value) for value in ([-1], ["a"], 5, [True])],
    *[("logit_bias", value) for value in ([], {"a": 1}, {"-1": 1}, {"1": 101}, {"1": "x"})],
    ("logit_bias", {"²": 1}),
    ("logit_bias", {str(i): 0 for i in range(1025)}),
    *[("logprobs", value) for value in (1, "yes")],
    *[("top_logprobs", value) for value in (-1, 21, True, 1.5)],
    *[("stream", value) for value in (1, "true")],
    *[("stream_options", value) for value in (True, {"include_usage": 1})],
    *[("messages", value) for value in ([], "hi", [1], [{}], [{"role": "robot"}], {})],
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "user", "content": 5}]),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
    ("messages", [{"role": "assistant"}]),
    ("messages", [{"role": "tool", "content": "x"}]),
    ("messages", [{"role": ["user"], "content": "x"}]),
    *[("tools", value) for value in ([], {}, [1], [{}], [TOOL] * 129)],
    ("tools", [{"type": "function", "function": {"name": 'a"b'}}]),
    ("tools", [{"type": "function", "function": {"name": "a", "parameters": []}}]),
    *[("tool_choice", value) for value in ("always", 5, {}, {"type": "function"})],
    ("tool_choice", {"type": "function", "function": {"name": "other"}}),
    *[("response_format", value) for value in ("json", {}, {"type": 5}, {"type": "json_schema"})],
    (
        "response_format",
        {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"description": "x" * 70_000}},
        },
    ),
    *[("structured_outputs", value) for value in ({}, {"regex": ""}, {"grammar": "x"}, "x")],
    ("structured_outputs", {"regex": "a", "choice": ["b"]}),
    ("structured_outputs", {"choice": []}),
    ("metadata", {"a": 1}),
    ("user", 5),
    ("model", 5),
    ("model", ""),
    ("reasoning_effort", "extreme"),
    ("chat_template_kwargs", {"x": {}}),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES, ids=lambda value: str(value)[:40])
def test_a_bad_value_is_refused_and_its_field_is_named(field: str, value: Any) -> None:
    error = refusal(Operation.CHAT, **{field: value})
    assert error.status == 400
    assert error.param is not None
    # A rule about two fields may name the other one (tool_choice is about tools).
    assert field in error.param or error.param in ("tool_choice", "min_tokens")
    assert len(error.message) < 1000


@pytest.mark.parametrize(
    "prompt",
    [
        *("", [], [[]], [""], 5, {}, [1, -1], [1, "a"], ["a", 1], [[1], "a"], ["a", [1]]),
        *([[1.5]], [True], [2**31], ["a"] * 129, [None], None),
    ],
)
def test_a_bad_prompt_is_refused(prompt: Any) -> None:
    error = refusal(Operation.COMPLETION, prompt=prompt)
    assert (error.param or "").startswith("prompt")


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [0, 5], [[1], [2, 3]]])
def test_good_prompts(prompt: Any) -> None:
    check(Operation.COMPLETION, {"prompt": prompt})
    check(Operation.EMBEDDINGS, {"input": prompt})


def test_no_tokens_are_asked_for_only_with_echo() -> None:
    check(Operation.COMPLETION, {"prompt": "a", "max_tokens": 0, "echo": True})
    error = refusal(Operation.COMPLETION, echo=False)
    assert error.param == "max_tokens"


def test_a_thinking_budget_is_below_max_tokens() -> None:
    error = refusal(Operation.MESSAGES, max_tokens=1024)
    assert error.param == "thinking.budget_tokens"


def test_tokenize_takes_a_prompt_or_messages() -> None:
    check(Operation.TOKENIZE, {"prompt": ""})
    refusal(Operation.TOKENIZE, prompt="a")


def test_limits_are_the_operators() -> None:
    limits = LimitSettings(max_n=1, max_logprobs=0, max_tools=1, max_messages=1)
    for fields in ({"n": 2}, {"logprobs": True, "top_logprobs": 1}, {"messages": USER * 2}):
        with pytest.raises(InvalidRequest):
            check(Operation.CHAT, {"messages": USER} | fields, limits)


# Nothing that is a JSON value may end as anything but a client error.

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, -1e308, float("nan"), float("inf"),
    "", "x", "\ud800", "\0", "a" * 5000, [], {}, [[]], [{}], [None], [1, "a", None], {"": None},
    {"type": None}, {"type": "text"}, {"type": "function"}, {"role": "user", "content": "x"},
    {"type": ["text"]}, {"type": "function", "function": None}, {"type": {}}, {"name": "weather"},
]  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    places = [path] if path else []
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, entry in items:
        places += _places(entry, (*path, key))
    return places


def _mutate(body: dict[str, Any], rng: random.Random) -> None:
    place = rng.choice(_places(body))
    holder: Any = body
    for key in place[:-1]:
        holder = holder[key]
    action = rng.random()
    if action < 0.15:
        del holder[place[-1]]
    elif action < 0.3 and isinstance(holder, dict):
        holder[rng.choice(["extra", "type", "\ud800", "content", "best_of"])] = rng.choice(_VALUES)
    else:
        holder[place[-1]] = copy.deepcopy(rng.choice(_VALUES))


@pytest.mark.parametrize("operation", list(Operation))
def test_whatever_a_client_sends_ends_in_a_client_error_or_passes(operation: Operation) -> None:
    rng = random.Random(20)  # noqa: S311  # the same cases every time
    outcomes = {"passed": 0, "refused": 0}
    for _ in range(1500):
        body = copy.deepcopy(BODIES[operation])
        for _ in range(rng.randint(1, 3)):
            if body:
                _mutate(body, rng)
        error = _error(operation, body)
        outcomes["refused" if error else "passed"] += 1
        if error:
            assert error.param
            assert len((error.message + error.param).encode()) < 2000
    assert min(outcomes.values()) > 20


def _error(operation: Operation, body: dict[str, Any]) -> ClientError | None:
    try:
        check(operation, body)
    except ClientError as error:
        return error
    return None
