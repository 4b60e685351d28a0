"""How much memory a model's weights take once they are loaded, at each dtype.

vLLM computes in 16 bits whatever the files hold, keeps packed weights as they are packed,
does not load what it does not use (a tied output head, tables that it computes itself), and
rounds the rows of the vocabulary up to a multiple of 64. A GGUF is served dequantized.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from enum import StrEnum

from llmserve.modelfile.types import Format, ModelFile, TensorInfo

_VOCABULARY_ROWS = 64
_EMBEDDING = re.compile(
    r"embed_tokens|word_embeddings|token_type_embeddings|\bwte\b|token_embd|lm_head"
    r"|^output\.weight$"
)
_POOLER = re.compile(r"(?:^|\.)pooler\.dense\.")
_HEAD = re.compile(r"(?:^|\.)lm_head\.weight$")
_NOT_LOADED = re.compile(
    r"rope_freqs|rope_factors|rotary_emb\.inv_freq|position_ids|\.nextn\.|^mtp\.|masked_bias$"
)
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_NARROW = 2
_INT4_BYTES = 0.53125
"""4 bits, and a 16-bit scale and a zero point for each 128 weights."""


class Dtype(StrEnum):
    """What weights can be loaded as. ``FP8`` and ``INT4`` pack the matrices of the layers;
    embeddings, output head and norms stay at 16 bits."""

    F32 = "F32"
    BF16 = "BF16"
    FP8 = "FP8"
    INT4 = "INT4"


_WIDTHS: Mapping[Dtype, float] = {
    Dtype.F32: 4,
    Dtype.BF16: 2,
    Dtype.FP8: 1,
    Dtype.INT4: _INT4_BYTES,
}


def is_packed(model: ModelFile) -> bool:
    """Whether the weights are quantized already, and stay so when they are loaded."""
    return model.quantization.method is not None


def weights_by_dtype(model: ModelFile) -> dict[str, int]:
    """Bytes at each dtype that the model can be loaded as. A model that comes packed has
    one entry, under the name of its method."""
    if is_packed(model):
        return {str(model.quantization.method): _sum(model, _packed_bytes)}
    return {each.value: loaded_bytes(model, each) for each in Dtype}


def loaded_bytes(model: ModelFile, dtype: Dtype, *, devices: int = 1) -> int:
    """Bytes on each of ``devices`` devices. Matrices are divided, norms and biases are
    held by all. Of a packed model ``dtype`` says nothing."""
    if is_packed(model):
        return _sum(model, _packed_bytes, devices)
    return _sum(model, lambda tensor: _float_bytes(tensor, dtype), devices)


def _sum(model: ModelFile, measure: Callable[[TensorInfo], float], devices: int = 1) -> int:
    skipped = [_NOT_LOADED]
    if _is_tied(model):
        skipped.append(_HEAD)
    if not (model.architecture or "").endswith("ForSequenceClassification"):
        skipped.append(_POOLER)
    total = 0.0
    for tensor in model.tensors:
        if any(each.search(tensor.name) for each in skipped):
            continue
        total += measure(tensor) / (devices if len(tensor.shape) > 1 else 1)
    return math.ceil(total)


def _is_tied(model: ModelFile) -> bool:
    """Whether the output head is the embedding, and its own copy is not loaded."""
    if model.format is Format.GGUF:
        return False
    own = model.metadata.get("config.tie_word_embeddings")
    inner = model.metadata.get("config.text_config.tie_word_embeddings")
    return own is True or inner is True


def _float_bytes(tensor: TensorInfo, dtype: Dtype) -> float:
    elements = _elements(tensor)
    if dtype is Dtype.F32:
        return 4 * elements
    if len(tensor.shape) < 2 or _EMBEDDING.search(tensor.name):
        return _NARROW * elements
    return _WIDTHS[dtype] * elements


def _packed_bytes(tensor: TensorInfo) -> float:
    """Packed weights and scales as they are; what is left of 32 bits becomes 16."""
    if tensor.dtype in _FLOATS and not tensor.name.endswith(("scale", "scales", "scale_inv")):
        return _NARROW * _elements(tensor)
    return tensor.bytes


def _elements(tensor: TensorInfo) -> int:
    rows, rest = (tensor.shape[0], tensor.shape[1:]) if tensor.shape else (1, ())
    if rest and _EMBEDDING.search(tensor.name):
        rows = math.ceil(rows / _VOCABULARY_ROWS) * _VOCABULARY_ROWS
    return rows * math.prod(rest)
