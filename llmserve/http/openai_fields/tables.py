"""The fields of each operation, with the check of each value."""

from __future__ import annotations

from typing import Any

from llmserve.http.openai_fields import content, formats, prompts
from llmserve.http.openai_fields.values import (
    MAX_INT64,
    Check,
    array,
    boolean,
    integer,
    json_object,
    number,
    obj,
    one_of,
    only,
    text,
    wrong,
)
from llmserve.settings import LimitSettings
from llmserve.types import Operation

Table = dict[str, Check]

_BOOL, _TEXT, _COUNT = boolean, text(0, 4096), integer(1)
# The gateway's: it orders by the one and takes the other out before the engine.
_PRIORITY = integer(-100, 100)
_TIMEOUT = {"timeout_s": number(0, 86_400, above_low=True)}
_TOKEN_IDS = array(integer(0), 0, lambda limits: limits.max_logit_bias)

# Said of a request rather than asked of it: none of these changes an answer, in OpenAI's
# service or here, so taking them breaks no promise.
_HINTS: Table = {
    "user": _TEXT,
    "safety_identifier": _TEXT,
    "metadata": content.metadata,
    # vLLM caches every prefix by itself; these would only say where and for how long.
    "prompt_cache_key": _TEXT,
    "prompt_cache_retention": one_of("in_memory", "24h"),
    "service_tier": only(["auto", "default"], "there is one tier"),
    "store": only([False], "this server keeps no answers"),
}


def _truncation(value: Any, path: str, limits: LimitSettings) -> None:
    if value == 0:
        raise wrong(path, value, "an integer from 1, or -1 for what the context holds")
    integer(-1)(value, path, limits)


_SAMPLING: Table = {
    "model": text(1, 1024),
    "temperature": number(0, 2),
    "top_p": number(0, 1, above_low=True),
    "top_k": integer(-1),
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    # Above 2 no model says anything sensible; 10 keeps logits finite.
    "repetition_penalty": number(0, 10, above_low=True),
    "seed": integer(-(2**63), MAX_INT64),
    "stop": formats.stop,
    "stop_token_ids": _TOKEN_IDS,
    "ignore_eos": _BOOL,
    "skip_special_tokens": _BOOL,
    "include_stop_str_in_output": _BOOL,
    "logit_bias": formats.logit_bias,
    "stream": _BOOL,
    "structured_outputs": formats.structured_outputs,
    "priority": _PRIORITY,
}

_GENERATION: Table = _SAMPLING | {
    "n": integer(1, lambda limits: limits.max_n),
    "max_tokens": _COUNT,
    "min_tokens": integer(0),
    "bad_words": array(text(1, 256), 0, 256),
    "allowed_token_ids": array(integer(0), 1, 2**20),
    "logprob_token_ids": _TOKEN_IDS,
    "prompt_logprobs": integer(0, lambda limits: limits.max_logprobs),
    "spaces_between_special_tokens": _BOOL,
    "add_special_tokens": _BOOL,
    "truncate_prompt_tokens": _truncation,
    "truncation_side": one_of("left", "right"),
    "return_token_ids": _BOOL,
    "return_tokens_as_token_ids": _BOOL,
    "stream_options": obj(
        {
            "include_usage": _BOOL,
            "continuous_usage_stats": _BOOL,
            "include_obfuscation": only([False], "nothing is added to a stream"),
        }
    ),
    "response_format": formats.response_format,
    "echo": _BOOL,
}

_TEMPLATE: Table = {
    "add_generation_prompt": _BOOL,
    "continue_final_message": _BOOL,
    "chat_template_kwargs": formats.template_arguments,
}

_LOGPROBS = integer(0, lambda limits: limits.max_logprobs)

_FIELDS: dict[Operation, Table] = {
    Operation.CHAT: _GENERATION
    | _TEMPLATE
    | _HINTS
    | {
        "messages": content.chat_messages,
        "max_completion_tokens": _COUNT,
        "logprobs": _BOOL,
        "top_logprobs": _LOGPROBS,
        "tools": formats.chat_tools,
        "tool_choice": formats.chat_tool_choice,
        "parallel_tool_calls": _BOOL,
        "reasoning_effort": formats.reasoning_effort,
        "include_reasoning": _BOOL,
        "thinking_token_budget": integer(-1),
        "modalities": only([["text"]], "this server makes text only"),
        "verbosity": formats.verbosity,
    },
    Operation.COMPLETION: _GENERATION
    | {
        "prompt": prompts.prompts(prompts.MAX_PROMPTS),
        "logprobs": _LOGPROBS,
        # 0 asks for the log probabilities of the prompt alone, with ``echo``.
        "max_tokens": integer(0),
        "user": _TEXT,
    },
    Operation.RESPONSES: _SAMPLING
    | _HINTS
    | {
        "input": content.response_input,
        "instructions": text(),
        "max_output_tokens": _COUNT,
        "top_logprobs": _LOGPROBS,
        "include": array(
            only(
                # The second one is about reasoning that is hidden; here it is not.
                ["message.output_text.logprobs", "reasoning.encrypted_content"],
                "the others belong to tools that this server does not have",
            )
        ),
        "tools": formats.response_tools,
        "tool_choice": formats.response_tool_choice,
        "parallel_tool_calls": _BOOL,
        "reasoning": formats.response_reasoning,
        "include_reasoning": _BOOL,
        "text": formats.response_text,
        "truncation": one_of("auto", "disabled"),
        "background": only([False], "answers are given while the caller waits"),
        "chat_template_kwargs": formats.template_arguments,
        "stream_options": obj({"include_obfuscation": only([False], "nothing is added")}),
    },
    Operation.MESSAGES: {
        "model": text(1, 1024),
        "messages": content.anthropic_messages,
        "max_tokens": _COUNT,
        "system": content.system_prompt,
        "metadata": obj({"user_id": _TEXT}),
        "stop_sequences": formats.stops,
        "stream": _BOOL,
        "temperature": number(0, 2),
        "top_k": integer(-1),
        "top_p": number(0, 1, above_low=True),
        "tools": formats.anthropic_tools,
        "tool_choice": formats.anthropic_tool_choice,
        "thinking": formats.thinking,
        "output_config": formats.anthropic_output,
        "service_tier": only(["auto", "standard_only"], "there is one tier"),
        "chat_template_kwargs": formats.template_arguments,
        "cache_control": json_object,
    },
    Operation.COUNT_TOKENS: {
        "model": text(1, 1024),
        "messages": content.anthropic_messages,
        "system": content.system_prompt,
        "tools": formats.anthropic_tools,
        "tool_choice": formats.anthropic_tool_choice,
        "thinking": formats.thinking,
        "output_config": formats.anthropic_output,
        "chat_template_kwargs": formats.template_arguments,
        "cache_control": json_object,
    },
    Operation.EMBEDDINGS: {
        "model": text(1, 1024),
        "input": prompts.prompts(prompts.MAX_EMBEDDING_INPUTS),
        "encoding_format": one_of("float", "base64"),
        "dimensions": integer(1, 2**20),
        "user": _TEXT,
        "priority": _PRIORITY,
        "add_special_tokens": _BOOL,
        "truncate_prompt_tokens": _truncation,
        "truncation_side": one_of("left", "right"),
    },
    Operation.TOKENIZE: _TEMPLATE
    | {
        "model": text(1, 1024),
        "prompt": text(),
        "messages": content.chat_messages,
        "tools": formats.chat_tools,
        "add_special_tokens": _BOOL,
        "return_token_strs": _BOOL,
    },
    Operation.DETOKENIZE: {"model": text(1, 1024), "tokens": prompts.token_list},
}

FIELDS: dict[Operation, Table] = {
    operation: table | _TIMEOUT for operation, table in _FIELDS.items()
}
