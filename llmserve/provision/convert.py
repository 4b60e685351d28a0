"""The process that converts one GGUF file: ``python -m llmserve.provision.convert``.

transformers reads the weights. What it does not carry over of the tokenizer, the rotary
embedding and the generation settings is added here from the file's own metadata (see
``facts``), and the result is compared with the file before anybody may use it (see
``verify``). Progress and the final reason go to standard output as lines of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from llmserve.provision.cache import current_umask, in_words, require_space
from llmserve.provision.dequantize import SHARD_BYTES, open_stream, save_config, write_shards
from llmserve.provision.facts import (
    GgufFacts,
    chat_templates,
    generation_config,
    read_facts,
    repair_config,
    repair_tokenizer,
)
from llmserve.provision.gguf import NOTES, WITHOUT_WEIGHTS
from llmserve.provision.rope import Impossible


def main() -> int:
    """Convert ``argv[1]`` into the folder ``argv[2]``, perhaps ``--without-weights``."""
    from llmserve.errors import SetupError

    # The file has all that is needed; a GPU is neither needed nor wanted.
    os.environ.update(
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_VERBOSITY="error",
        CUDA_VISIBLE_DEVICES="",
        DO_NOT_TRACK="1",
    )
    file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        convert(file, folder, weights=WITHOUT_WEIGHTS not in sys.argv[3:])
    except (Impossible, SetupError) as error:
        tell(error=str(error))
        return 1
    except ImportError as error:
        tell(
            error=f"a component is missing: {error}. Install the engine: make setup, or"
            " pip install 'llmserve[cpu]' (docs/install.md)."
        )
        return 1
    except MemoryError:
        tell(error="memory ran out.")
        return 1
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        tell(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


def tell(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def convert(file: Path, folder: Path, *, weights: bool = True) -> None:
    from llmserve.provision.verify import verify_tokenizer

    tell(step="reading")
    facts = read_facts(file)
    if weights:
        check_disk(facts, folder)
    tokenizer = load_tokenizer(file, facts)
    tokenizer.save_pretrained(folder)
    repair_tokenizer(folder, facts)
    verify_tokenizer(folder, facts)
    _write_model(file, folder, facts, weights=weights)
    repair_config(folder, facts)
    for name, template in chat_templates(facts).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8", newline="")
    write_json(folder / "generation_config.json", generation_config(facts))
    write_json(folder / NOTES, {"source": file.name, "notes": list(facts.notes)})
    # save_pretrained makes files that only their owner can read.
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~current_umask())


def _write_model(file: Path, folder: Path, facts: GgufFacts, *, weights: bool) -> None:
    """Weights and configuration: in shards where that is possible, else all at once."""
    from llmserve.provision.verify import verify_weights

    try:
        stream = open_stream(file, facts.architecture)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise Impossible(not_supported(facts, error)) from error
    if stream is not None:
        verify_weights(stream.model, facts)
        if not weights:
            save_config(stream, folder)
            return
        require_memory(3 * SHARD_BYTES if facts.weights > SHARD_BYTES // 2 else 6 * facts.weights)
        write_shards(stream, folder, lambda done: tell(step="weights", fraction=done))
        save_config(stream, folder)
        return
    if not weights:
        raise Impossible(f"the layout of {facts.architecture!r} models has no plain counterpart.")
    # While converting, memory holds the result, and as much again that is in the works.
    require_memory(4 * facts.weights)
    model = load_model(file, facts)
    verify_weights(model, facts)
    tell(step="writing")
    model.save_pretrained(folder)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_disk(facts: GgufFacts, folder: Path) -> None:
    """The result holds two bytes for each weight; what an attempt before has left counts."""
    there = sum(each.stat().st_size for each in folder.glob("model*.safetensors"))
    needed = int(1.05 * (2 * facts.weights - there)) + 50_000_000
    require_space(folder, max(0, needed), "The converted model")


def require_memory(needed: int) -> None:
    """Raises ``Impossible`` when less is free."""
    import psutil

    free = psutil.virtual_memory().available
    if free < needed:
        raise Impossible(
            f"the conversion needs about {in_words(needed)} of memory, and"
            f" {in_words(free)} are free. Serve the model's own SafeTensors repository instead."
        )


def load_tokenizer(file: Path, facts: GgufFacts) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except (ValueError, KeyError) as error:
        raise Impossible(not_supported(facts, error)) from error


def load_model(file: Path, facts: GgufFacts) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    watch_loading()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.bfloat16, output_loading_info=True
        )
    except (ValueError, KeyError) as error:
        raise Impossible(not_supported(facts, error)) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise Impossible(
            f"the file lacks {len(missing)} weights of its architecture, {missing[0]} among them."
        )
    # The weights are plain numbers now; nothing may say that they are still packed.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    return model


def not_supported(facts: GgufFacts, error: Exception) -> str:
    return (
        f"transformers cannot read this {facts.architecture!r} model from a GGUF file"
        f" ({error}). Serve the model's own SafeTensors repository instead."
    )


def watch_loading() -> None:
    """Let transformers' own progress bar report to us."""
    from transformers import modeling_gguf_pytorch_utils as reader

    def reporting(tensors: list[Any], **_: Any) -> Any:
        tell(step="weights", fraction=0.0)
        for done, tensor in enumerate(tensors, start=1):
            yield tensor
            tell(step="weights", fraction=done / len(tensors))

    reader.tqdm = reporting


if __name__ == "__main__":
    sys.exit(main())
