"""A search for model files that break the readers, guided by coverage.

    python -m tests.fuzz.fuzz_modelfile [SECONDS] [FOLDER]

needs atheris, and without it says how to get it and ends with status 1. It ends with
status 0 when nothing was found in SECONDS (60); interesting inputs are kept in FOLDER
and used the next time. A finding is a file that raises anything but ``ModelFileError``,
takes more than a second, or more than 512 MB.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

SECONDS = 60
LONGEST = 8192


def try_one(data: bytes, folder: Path) -> None:
    """As a file, and as the small files of a folder."""
    from llmserve.modelfile import ModelFileError, describe

    model = folder / "model.safetensors"
    if data[:1] == b"{":
        (folder / "config.json").write_bytes(data)
        (folder / "tokenizer_config.json").write_bytes(data)
        (folder / "model.safetensors.index.json").write_bytes(data)
        target = folder
    else:
        model.write_bytes(data)
        target = model
    try:
        describe(target)
    except ModelFileError:
        pass
    finally:
        for each in folder.iterdir():
            each.unlink()


def main(arguments: list[str]) -> int:
    if importlib.util.find_spec("atheris") is None:
        print(  # noqa: T201
            "fuzz: nothing was tried, for atheris is not here. Install it with"
            f" `{sys.executable} -m pip install atheris` and run this again.",
            file=sys.stderr,
        )
        return 1
    import atheris

    with atheris.instrument_imports(include=["llmserve.modelfile"]):
        import llmserve.modelfile  # noqa: F401
    from tests.unit.modelfile.malformed import seeds

    seconds = int(arguments[0]) if arguments else SECONDS
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(arguments[1] if len(arguments) > 1 else temporary) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate([*seeds(), b'{"weight_map":{"a":"b"},"auto_map":{}}']):
            (corpus / f"seed-{number}").write_bytes(data)
        folder = Path(temporary) / "model"
        folder.mkdir()
        options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=1"]
        options += ["-rss_limit_mb=512", f"-artifact_prefix={corpus.parent}/found-"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: try_one(data, folder))
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
