"""What a started server tells the person at the terminal."""

from __future__ import annotations

import shutil
import sys

from llmserve.settings import Settings


def announce(settings: Settings, model: str, port: int, *, keys: bool) -> None:
    """Print, on standard output, how to talk to the server."""
    host = settings.server.host
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104  # only shown
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if keys else ""
    command = "llmserve" if shutil.which("llmserve") else ".venv/bin/llmserve"
    sys.stdout.write(
        f"""
{model} is ready at {url}

  Chat in the terminal   {command} chat --url {url}
  Stream with curl       curl -N {url}/generate/stream{key} -H 'Content-Type: application/json' \\
                           -d '{{"messages": [{{"role": "user", "content": "Hello!"}}]}}'
  OpenAI SDK             OpenAI(base_url="{url}/v1", api_key="{"YOUR_KEY" if key else "none"}")
  Docs and metrics       {url}/docs   {url}/metrics   {url}/readyz

Stop with Ctrl-C.
"""
    )
    sys.stdout.flush()
