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
from llmserve.provision.facts import (
    GgufFacts,
    chat_templates,
    generation_config,
    read_facts,
    repair_config,
    repair_tokenizer,
)
from llmserve.provision.gguf import NOTES
from llmserve.provision.rope import Impossible


def main() -> int:
    """Convert ``argv[1]`` into the folder ``argv[2]``."""
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
        convert(file, folder)
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


def convert(file: Path, folder: Path) -> None:
    from llmserve.provision.verify import verify_tokenizer, verify_weights

    tell(step="reading")
    facts = read_facts(file)
    check_resources(facts, folder)
    tokenizer = load_tokenizer(file, facts)
    tokenizer.save_pretrained(folder)
    repair_tokenizer(folder, facts)
    verify_tokenizer(folder, facts)
    model = load_model(file, facts)
    verify_weights(model, facts)
    tell(step="writing")
    model.save_pretrained(folder)
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


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_resources(facts: GgufFacts, folder: Path) -> None:
    """The result holds two bytes for each weight; while converting, so does memory, and
    once more for what is in the works."""
    import psutil

    result = 2 * facts.weights
    require_space(folder, int(1.05 * result) + 50_000_000, "The converted model")
    free = psutil.virtual_memory().available
    if free < 2 * result:
        raise Impossible(
            f"the conversion needs about {in_words(2 * result)} of memory, and"
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
