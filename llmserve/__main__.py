"""``python -m llmserve``: the same as the ``llmserve`` command."""

from llmserve.cli.main import main

if __name__ == "__main__":
    main()
