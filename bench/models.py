"""The models that are measured, as folders on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

LONG_CONTEXT = 32_768


def demo() -> Path:
    """SmolLM2-135M-Instruct, converted."""
    from llmserve.provision.resolve import resolve_model

    return Path(resolve_model("demo").path)


def tiny(folder: Path) -> Path:
    """The random one-layer model of the tests, with the demo model's tokenizer."""
    from tests.models import tiny_model

    return tiny_model(demo(), folder / "tiny")


def tiny_long(folder: Path) -> Path:
    """The same with room for ``LONG_CONTEXT`` tokens: what it says does not matter."""
    target = folder / "tiny-long"
    if not target.is_dir():
        shutil.copytree(tiny(folder), target)
        path = target / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["max_position_embeddings"] = LONG_CONTEXT
        path.write_text(json.dumps(config), encoding="utf-8")
    return target
