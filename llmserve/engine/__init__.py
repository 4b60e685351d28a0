"""Engines: the seam (``protocol``), its implementations (``vllm``, ``fake``), and the
supervisor that keeps one of them alive."""
