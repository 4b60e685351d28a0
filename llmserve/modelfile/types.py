"""What a model file says about its model, as frozen values.

Every field is what the file says or what follows from it by arithmetic; ``None`` means
that the file does not say. Sizes are bytes, offsets are absolute positions in their
file, shapes are as PyTorch shows them (outermost dimension first, whatever the format
stores).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Format(StrEnum):
    """The container, by content. ``PICKLE`` is detected in order to be refused."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"
    APR = "apr"
    PICKLE = "pickle"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Detected:
    """``detail`` is for people: the version, why a pickle is refused, or the first bytes
    of what is unknown."""

    format: Format
    detail: str

    @property
    def readable(self) -> bool:
        """Whether ``describe`` can say more."""
        return self.format not in (Format.PICKLE, Format.UNKNOWN)


class TensorInfo(NamedTuple):
    """One row of the tensor table. ``dtype`` is the format's own name in capitals
    (``BF16``, ``Q4_1``, ``F8_E4M3``)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    offset: int
    file: str


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """A list in the metadata: the type of its items, how many, and the first few (16)."""

    type: str
    length: int
    first: tuple[str | int | float | bool | None, ...]


MetaValue = str | int | float | bool | None | ArraySummary
"""A value of the metadata. Nested objects are flattened: ``config.rope_scaling.factor``."""


class ProblemKind(StrEnum):
    """What is wrong with a file that can still be described."""

    OVERLAP = "overlap"
    GAP = "gap"
    TRUNCATED = "truncated"
    MISALIGNED = "misaligned"
    INDEX = "index"
    MISSING = "missing"
    SIZE = "size"
    METADATA = "metadata"
    CHECKSUM = "checksum"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class Problem:
    """``where`` names file and tensor, key or offset; ``detail`` is one sentence."""

    kind: ProblemKind
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of the model. ``header_bytes`` is how much of it had to be read;
    ``mapped`` says that it was read through a memory map (files over 50 MB)."""

    name: str
    bytes: int
    header_bytes: int
    mapped: bool


@dataclass(frozen=True, slots=True)
class Dimensions:
    """``vocab_size`` is the number of rows of the embedding (which may be padded)."""

    layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    context_length: int | None = None


class AttentionKind(StrEnum):
    """Multi-head, grouped-query, multi-query, multi-head latent; ``NONE`` for models
    without attention (state space only)."""

    MHA = "MHA"
    GQA = "GQA"
    MQA = "MQA"
    MLA = "MLA"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class KvGroup:
    """``layers`` layers that keep the same KV cache: per token ``kv_heads`` × (``key_dim``
    + ``value_dim``) elements, for at most ``window`` tokens (``None``: for all of them).

    A latent cache (MLA) is one head: ``key_dim`` the latent rank and the rotary part,
    ``value_dim`` 0.
    """

    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    @property
    def elements_per_token(self) -> int:
        """Cache elements (not bytes) per token in all of the group's layers."""
        return self.layers * self.kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class Attention:
    """``kv`` covers every layer with a KV cache; ``recurrent_layers`` keep a state of
    constant size instead (state space, linear attention). ``kv_heads`` is the largest
    where layers differ. ``causal`` is ``False`` for encoders, which need no cache."""

    kind: AttentionKind
    heads: int
    kv_heads: int
    head_dim: int
    kv: tuple[KvGroup, ...] = ()
    sliding_window: int | None = None
    recurrent_layers: int = 0
    causal: bool = True


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding. ``scaling`` is the kind (``linear``, ``yarn``, ``llama3``, …)."""

    theta: float | None = None
    dimensions: int | None = None
    scaling: str | None = None
    factor: float | None = None
    original_context_length: int | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """Experts per layer to choose from, how many a token uses, how many it always uses."""

    total: int
    active: int
    shared: int = 0


class SpecialToken(NamedTuple):
    """Either part can be missing from the file."""

    id: int | None
    text: str | None


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """``special`` by role: ``bos``, ``eos``, ``eot``, ``pad``, ``unk``, ``sep``, ``cls``,
    ``mask``. ``tokens`` is the number of entries in the vocabulary."""

    kind: str | None = None
    pre: str | None = None
    tokens: int | None = None
    special: Mapping[str, SpecialToken] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template as text, never rendered. ``warnings``: what is unusual in it."""

    name: str
    text: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parameters:
    """Weights, and those that one token passes through (fewer where there are experts).
    Packed weights are counted unpacked, scales are not counted."""

    total: int
    active: int


@dataclass(frozen=True, slots=True)
class DtypeShare:
    """All tensors of one dtype."""

    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Quantization:
    """``label`` is what people call it (``Q4_K_M``, ``gptq 4-bit``, ``BF16``);
    ``method`` is a Hugging Face quantization method, or ``None``. ``bits_per_weight`` is
    bytes of all tensors × 8 ÷ parameters, scales and unquantized tensors included."""

    label: str
    method: str | None
    mix: Mapping[str, DtypeShare]
    bits_per_weight: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter."""

    type: str
    rank: int | None
    alpha: float | None
    target_modules: tuple[str, ...]
    base_model: str | None


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Everything that a model's headers say.

    ``family`` is the kind of model in the format's words (GGUF ``general.architecture``,
    Hugging Face ``model_type``), ``architecture`` the class (``LlamaForCausalLM``) where
    the files name one, else the family. ``kind`` is ``model``, ``adapter``,
    ``projector`` or another ``general.type``. ``name`` is that of the file or folder
    where nothing inside names the model. ``custom_code``: Python files beside it.

    ``fingerprint`` changes whenever a header, a size or a sampled block of a file does.
    It is no checksum: weights changed in place between the samples go unnoticed.
    """

    format: Format
    version: str | None
    kind: str
    files: tuple[FileInfo, ...]
    tensors: Sequence[TensorInfo]
    metadata: Mapping[str, MetaValue]
    family: str | None
    architecture: str | None
    name: str | None
    licence: str | None
    dimensions: Dimensions
    attention: Attention | None
    rope: Rope | None
    experts: Experts | None
    tokenizer: Tokenizer | None
    chat_templates: tuple[ChatTemplate, ...]
    parameters: Parameters
    quantization: Quantization
    adapter: Adapter | None
    custom_code: tuple[str, ...]
    problems: tuple[Problem, ...]
    fingerprint: str

    @property
    def total_bytes(self) -> int:
        """Size of the files that hold the tensors."""
        return sum(each.bytes for each in self.files)

    @property
    def tensor_bytes(self) -> int:
        """Size of all tensors: the weights as they lie in the files."""
        return sum(each.bytes for each in self.tensors)

    @property
    def mapped(self) -> bool:
        """Whether a file was read through a memory map (over 50 MB)."""
        return any(each.mapped for each in self.files)
