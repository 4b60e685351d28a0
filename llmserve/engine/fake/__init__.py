"""A scripted engine: deterministic, without a model and without threads.

For tests, for front-end work (``llmserve serve --engine fake``) and for load models. It
passes the same contract suite as the real engine (``tests/contract``); what it cannot do
it refuses by name.
"""

from llmserve.engine.fake.engine import FakeEngine, fake_factory
from llmserve.engine.fake.script import Reply, Script

__all__ = ["FakeEngine", "Reply", "Script", "fake_factory"]
