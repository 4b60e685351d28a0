"""Fields that are known and refused, each with the reason that its sender is told."""

from __future__ import annotations

from llmserve.types import Operation

_SERVER = "it is the server's to set"
_BEAM = "there is no beam search"
_PLACE = "it belongs to a kind of deployment that this server is not part of"
_MEDIA = "multimodal input is not supported"
_RENDER = "only vLLM's render routes read it"
_STORED = "this server keeps no answers; send the whole conversation"
_GUIDED = "use response_format or structured_outputs"

# vLLM's own fields that no client of this server may set.
_ENGINE = {
    "chat_template": "the model's own template is used",
    "kv_transfer_params": _PLACE,
    "ec_transfer_params": _PLACE,
    "cache_salt": _SERVER,
    "request_id": f"{_SERVER}; send the header x-request-id",
    "session_id": _PLACE,
    "vllm_xargs": _SERVER,
    "prompt_embeds": "send text or token ids",
    "mm_processor_kwargs": _MEDIA,
    "media_io_kwargs": _MEDIA,
    "mm_payload": _RENDER,
    "return_mm_kwargs": _RENDER,
    "return_token_offsets": _RENDER,
    "return_prompt_text": "ask /tokenize",
    "routed_experts_prompt_start": _PLACE,
    "use_beam_search": _BEAM,
    "length_penalty": _BEAM,
    "early_stopping": _BEAM,
    "watermarking": _SERVER,
    "repetition_detection": "use the penalties",
    "stream_interval": _SERVER,
    "enable_response_messages": "ask /tokenize",
    "previous_input_messages": "send input",
    "documents": "put them into the messages",
} | dict.fromkeys(
    (
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "guided_decoding_backend",
        "guided_whitespace_pattern",
    ),
    _GUIDED,
)

_GENERATE = {
    "best_of": "ask for n and choose yourself",
    "suffix": "the model completes text at its end only",
    "moderation": "there is no moderation model here",
}

_CHAT = {
    "functions": "it is the old form of tools",
    "function_call": "it is the old form of tool_choice",
    "audio": "this server makes text only",
    "prediction": "there are no predicted outputs",
    "web_search_options": "there is no web search",
}

_RESPONSES = {
    "previous_response_id": _STORED,
    "conversation": _STORED,
    "prompt": "there are no stored prompt templates",
    "max_tool_calls": "it counts calls of built-in tools, and there are none",
    "context_management": _STORED,
    "n": "a response is one answer",
    "max_tokens": "it is called max_output_tokens here",
    "max_completion_tokens": "it is called max_output_tokens here",
    "messages": "it is called input here",
    "response_format": "it is called text.format here",
}

_MESSAGES = {
    "container": "there is no code execution",
    "mcp_servers": "this server calls no tools itself",
    "context_management": "send the conversation as it is to be read",
    "inference_geo": "the model runs where this server runs",
    "max_completion_tokens": "it is called max_tokens here",
    "stop": "it is called stop_sequences here",
    "response_format": "it is called output_config.format here",
}

REFUSED: dict[Operation, dict[str, str]] = {
    Operation.CHAT: _ENGINE | _GENERATE | _CHAT,
    Operation.COMPLETION: _ENGINE | _GENERATE,
    Operation.RESPONSES: _ENGINE | _GENERATE | _CHAT | _RESPONSES,
    Operation.MESSAGES: _ENGINE | _MESSAGES,
    Operation.COUNT_TOKENS: _ENGINE | _MESSAGES,
    Operation.EMBEDDINGS: _ENGINE
    | {"messages": "send input", "embed_dtype": "floats are 32 bits", "endianness": _SERVER},
    Operation.TOKENIZE: _ENGINE,
    Operation.DETOKENIZE: _ENGINE,
}
