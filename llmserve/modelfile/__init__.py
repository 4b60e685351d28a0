"""Model files: what they are and what they say, from their headers alone.

GGUF, SafeTensors (one file, several with an index, a Hugging Face folder, a LoRA
adapter) and APR, in pure Python over bounded reads. No tensor is read, nothing that a
file holds is executed or rendered, and a hostile file ends in a ``ModelFileError``.
The calls block (on the disk, for milliseconds): not for the event loop.

    detect(path, root=None)    -> Detected     the format, by content
    describe(path, root=None)  -> ModelFile    everything that the headers say
    identity(path)             -> str          changes when a file of the model may have
    describe_store(store)      -> ModelFile    the same, of files that lie elsewhere
    query(tensors, …)          -> TensorPage   filter, sort, page a tensor table
    estimate(model, Ask(…))    -> Estimate     what serving it takes, and whether it fits
    refusal(model)             -> str | None   why it cannot be served at all
    compare(a, b)              -> Comparison   what differs
"""

from __future__ import annotations

from llmserve.modelfile.compare import Comparison, compare
from llmserve.modelfile.errors import Malformed, ModelFileError, Refused, UnknownFormat, Unreadable
from llmserve.modelfile.estimate import Ask, Estimate, Verdict, estimate
from llmserve.modelfile.inspect import describe, describe_store, detect, identity
from llmserve.modelfile.memory import Dtype
from llmserve.modelfile.servable import refusal
from llmserve.modelfile.source import Source, Store
from llmserve.modelfile.table import SORTS, TensorPage, query
from llmserve.modelfile.types import (
    Adapter,
    ArraySummary,
    Attention,
    AttentionKind,
    ChatTemplate,
    Detected,
    Dimensions,
    DtypeShare,
    Experts,
    FileInfo,
    Format,
    KvGroup,
    MetaValue,
    ModelFile,
    Parameters,
    Problem,
    ProblemKind,
    Quantization,
    Rope,
    SpecialToken,
    TensorInfo,
    Tokenizer,
)
from llmserve.modelfile.units import parse_bytes

__all__ = [
    "SORTS",
    "Adapter",
    "ArraySummary",
    "Ask",
    "Attention",
    "AttentionKind",
    "ChatTemplate",
    "Comparison",
    "Detected",
    "Dimensions",
    "Dtype",
    "DtypeShare",
    "Estimate",
    "Experts",
    "FileInfo",
    "Format",
    "KvGroup",
    "Malformed",
    "MetaValue",
    "ModelFile",
    "ModelFileError",
    "Parameters",
    "Problem",
    "ProblemKind",
    "Quantization",
    "Refused",
    "Rope",
    "Source",
    "SpecialToken",
    "Store",
    "TensorInfo",
    "TensorPage",
    "Tokenizer",
    "UnknownFormat",
    "Unreadable",
    "Verdict",
    "compare",
    "describe",
    "describe_store",
    "detect",
    "estimate",
    "identity",
    "parse_bytes",
    "query",
    "refusal",
]
