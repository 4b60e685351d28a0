"""llmserve: an LLM text-generation server built on vLLM.

Importing this package is free: nothing heavy (torch, vLLM, FastAPI, pydantic) is
imported until a command needs it.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
