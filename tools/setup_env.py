"""Make ``.venv``: llmserve from this folder, and the vLLM build that fits this machine.

Standard library only: it runs with the bare Python of a fresh machine. ``make serve`` and
``make test`` call it every time; a stamp in ``.venv`` makes all runs but the first one do
nothing. The stamp is written last, so an interrupted set-up is simply continued.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (this line is for whoever has an older one)
    sys.exit(
        f"llmserve needs Python 3.11 or newer; this is {sys.version.split()[0]}. If a newer one"
        " is installed, name it: make serve PYTHON=python3.12"
    )

import argparse
import ast
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "llmserve-setup.json"
EXCLUDES = ROOT / "tools" / "excludes-cpu.txt"

UV = "uv>=0.9.8,<1"  # the first one with --excludes
DEFAULT_INDEX = "https://pypi.org/simple"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 8.0
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
NEWEST_PYTHON = (3, 14)  # the newest one that torch and vLLM have wheels for
NEEDED_GB = {"cuda": 14, "cpu": 5, "none": 1}


class Failure(Exception):
    """What failed and what to try, in words for whoever typed ``make``."""


def say(text: str) -> None:
    sys.stderr.write(f"set-up: {text}\n")
    sys.stderr.flush()


# --- which engine ---------------------------------------------------------------------


def has_gpu() -> bool:
    """Whether an NVIDIA GPU can be used: cheap checks first, nvidia-smi as the last word."""
    if any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/proc/driver/nvidia").glob("gpus/*")):
        return True
    smi = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if smi is None:
        return False
    try:
        listed = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def choose_engine(wanted: str) -> str:
    """``cuda``, ``cpu`` or ``none``; fails where vLLM has no build for this machine."""
    if wanted == "none":
        return "none"
    other = "`make setup ENGINE=none` installs llmserve without an engine (runtime.engine=fake)."
    if sys.platform != "linux":
        raise Failure(
            f"vLLM has no wheels for {platform.system()}. Run llmserve in Linux: in Docker, a"
            f" virtual machine or WSL. {other}"
        )
    if platform.machine() not in ("x86_64", "aarch64"):
        raise Failure(f"vLLM has no wheels for {platform.machine()} processors. {other}")
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 28):
        found = f"{libc} {version}" if libc else "another C library"
        raise Failure(
            f"vLLM's wheels need glibc 2.28 or newer; this system has {found}. Use Debian 10,"
            f" Ubuntu 20.04, RHEL 8 or newer, or Docker. {other}"
        )
    if sys.version_info[:2] > NEWEST_PYTHON:
        raise Failure(
            f"vLLM has no wheels yet for Python {VERSION}. Name an older one (3.11 to"
            f" {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}): make serve PYTHON=python3.12. {other}"
        )
    if wanted != "auto":
        return wanted
    return "cuda" if has_gpu() else "cpu"


# --- the stamp ------------------------------------------------------------------------


def fingerprint(engine: str) -> str:
    """Changes when what is installed would change."""
    digest = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", Path(__file__), EXCLUDES):
        digest.update(path.read_bytes())
    # A moved folder counts: scripts in .venv/bin and the editable install hold its path.
    digest.update(f"{engine} {sys.version_info[:2]} {VENV}".encode())
    return digest.hexdigest()


def is_current(engine: str, dev: bool) -> bool:
    """Whether an earlier run did all of this. A development set-up also serves."""
    try:
        stamp = json.loads(STAMP.read_text())
        return (
            PYTHON.exists()
            and stamp["fingerprint"] == fingerprint(engine)
            and (stamp["dev"] or not dev)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_stamp(engine: str, dev: bool) -> None:
    content = {"fingerprint": fingerprint(engine), "engine": engine, "dev": dev}
    partial = STAMP.with_suffix(".partial")
    partial.write_text(json.dumps(content) + "\n")
    partial.replace(STAMP)


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Two set-ups of one folder take turns. The folder itself is what is locked."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work here; waiting for it")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


# --- what pip knows -------------------------------------------------------------------


class Sources(NamedTuple):
    """Where pip looks for packages. uv reads none of it by itself."""

    main: str | None = None
    extra: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    trusted: tuple[str, ...] = ()
    cert: str | None = None
    proxy: str | None = None


def read_sources() -> Sources:
    """The settings of pip, from its files and the environment, as pip itself ranks them."""
    listed = subprocess.run([PYTHON, "-m", "pip", "config", "list"], capture_output=True, text=True)
    if listed.returncode != 0:
        return Sources()
    # Ranked upwards: [global] of the files, [install], environment.
    ranks = {"global": 0, "install": 1, ":env:": 2}
    values: dict[str, tuple[int, str]] = {}
    for line in listed.stdout.splitlines():
        name, equals, quoted = line.partition("=")
        section, _, key = name.partition(".")
        rank = ranks.get(section, -1)
        if equals and rank >= values.get(key, (0, ""))[0]:
            values[key] = (rank, str(ast.literal_eval(quoted)))

    def one(key: str) -> str | None:
        return values[key][1].strip() or None if key in values else None

    def many(key: str) -> tuple[str, ...]:
        return tuple((one(key) or "").split())

    return Sources(
        main=one("index-url"),
        extra=many("extra-index-url"),
        find_links=many("find-links"),
        no_index=(one("no-index") or "").lower() in ("1", "true", "yes", "on"),
        trusted=many("trusted-host"),
        cert=one("cert"),
        proxy=one("proxy"),
    )


def uv_arguments(sources: Sources) -> list[str]:
    """The same sources in uv's words."""
    arguments: list[str] = []
    if sources.no_index:
        arguments.append("--no-index")
    else:
        if sources.main:
            arguments += ["--default-index", sources.main]
        for url in sources.extra:
            arguments += ["--index", url]
        if sources.extra:  # pip takes the best version of all indexes; so must uv here
            arguments += ["--index-strategy", "unsafe-best-match"]
    for place in sources.find_links:
        arguments += ["--find-links", place]
    for host in sources.trusted:
        arguments += ["--allow-insecure-host", host]
    return arguments


def uv_environment(sources: Sources) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("VIRTUAL_ENV", None)
    environment.setdefault("UV_HTTP_TIMEOUT", "60")
    environment.setdefault("UV_NO_PROGRESS", "0" if sys.stderr.isatty() else "1")
    if sources.cert:
        environment.setdefault("SSL_CERT_FILE", sources.cert)
    if sources.proxy:
        environment.setdefault("ALL_PROXY", sources.proxy)
    return environment


# --- can it be reached ----------------------------------------------------------------


def reachable(url: str, sources: Sources) -> str | None:
    """``None`` if the index answers within a few seconds, otherwise why not.

    The request runs in a thread that is given up when the time is over: a name lookup
    or a server that drips bytes has no timeout of its own.
    """
    import ssl
    import threading
    import urllib.error
    import urllib.parse
    import urllib.request

    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("", "file"):
        found = Path(urllib.request.url2pathname(parts.path)).exists()
        return None if found else "there is no such folder"
    reason: list[str | None] = [f"no answer within {PROBE_SECONDS:.0f} seconds"]

    def ask() -> None:
        try:
            context = ssl.create_default_context(cafile=sources.cert)
            if parts.hostname in {host.partition(":")[0] for host in sources.trusted}:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            proxies = {parts.scheme: sources.proxy} if sources.proxy else None
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)
            )
            bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
            request = urllib.request.Request(bare.rstrip("/") + "/uv/", method="HEAD")
            opener.open(request, timeout=PROBE_SECONDS).close()
            reason[0] = None
        except urllib.error.HTTPError:
            reason[0] = None  # it answered; what it thinks of this page is no matter
        except (OSError, ValueError) as error:
            reason[0] = str(getattr(error, "reason", error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return reason[0]


def check_index(sources: Sources) -> None:
    if sources.no_index:
        return
    index = sources.main or DEFAULT_INDEX
    reason = reachable(index, sources)
    if reason is not None:
        raise Failure(
            f"the package index {without_password(index)} cannot be reached: {reason}.\n"
            "  Behind a proxy: set HTTPS_PROXY. A mirror: set PIP_INDEX_URL.\n"
            "  No network: put all wheels into a folder and set PIP_NO_INDEX=1 and"
            " PIP_FIND_LINKS=/that/folder (docs/install.md)."
        )


def without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path


def has_local_torch(sources: Sources) -> bool:
    """Whether a find-links folder holds the CPU build of torch for this Python."""
    tag = "cp" + VERSION.replace(".", "")
    for place in sources.find_links:
        folder = Path(place.removeprefix("file://")).expanduser()
        pattern = f"torch-*+cpu-{tag}-{tag}-*{platform.machine()}.whl"
        if folder.is_dir() and any(folder.glob(pattern)):
            return True
    return False


def torch_arguments(sources: Sources) -> list[str]:
    """Where uv finds the ``+cpu`` build of torch, which the package index does not have."""
    if sources.no_index or has_local_torch(sources) or "UV_TORCH_BACKEND" in os.environ:
        return []
    reason = reachable(TORCH_CPU_INDEX, sources)
    if reason is None:
        return ["--torch-backend", "cpu"]
    if sources.main or sources.extra or any("://" in place for place in sources.find_links):
        say(f"{TORCH_CPU_INDEX} cannot be reached ({reason}); looking for torch elsewhere")
        return []
    raise Failure(
        f"PyTorch's index for CPUs, {TORCH_CPU_INDEX}, cannot be reached: {reason}.\n"
        f"  The CPU build of torch is only there. If you have its wheel for Python {VERSION}"
        " (torch-…+cpu-….whl), set PIP_FIND_LINKS to its folder; a mirror that holds it goes"
        " into PIP_EXTRA_INDEX_URL (docs/install.md)."
    )


# --- doing it -------------------------------------------------------------------------


def run(
    what: str, command: Sequence[str | Path], advice: str, env: dict[str, str] | None = None
) -> None:
    """Run a step with its output shown; fail in words, not with a traceback."""
    say(what)
    try:
        code = subprocess.run(command, cwd=ROOT, env=env).returncode
    except OSError as error:
        raise Failure(f"{what}: {error}. {advice}") from error
    if code != 0:
        raise Failure(f"{what}: failed with exit status {code} (its own words are above). {advice}")


def make_venv() -> None:
    """A ``.venv`` that works, with pip: the one at hand, or a new one."""
    if VENV.exists() or VENV.is_symlink():
        if venv_works():
            return
        say(".venv does not work here (moved, broken, or another Python): making a new one")
        remove_venv()
    missing = (
        "this Python cannot make virtual environments: its venv module is incomplete. On Debian"
        f" and Ubuntu: sudo apt-get install python{VERSION}-venv"
    )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise Failure(missing) from None
    base = getattr(sys, "_base_executable", None) or sys.executable
    try:
        run("making .venv", [base, "-m", "venv", VENV], missing)
    except Failure:
        remove_venv()
        raise


def venv_works() -> bool:
    """It runs, it is the same Python, it believes to be where it is, and it has pip."""
    ask = "import sys, pip; print('%d.%d' % sys.version_info[:2], sys.prefix)"
    try:
        answer = subprocess.run([PYTHON, "-c", ask], capture_output=True, text=True, timeout=60)
        pip = (VENV / "bin" / "pip").read_text(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return False
    expected = f"{VERSION} {VENV}"
    return answer.stdout.strip() == expected and str(VENV) in pip


def remove_venv() -> None:
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    else:
        shutil.rmtree(VENV, ignore_errors=True)


def install(engine: str, dev: bool) -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    make_venv()
    have_uv = (VENV / "bin" / "uv").exists()
    if not have_uv and free < NEEDED_GB[engine]:
        raise Failure(
            f"{ROOT} has {free:.1f} GB free; this takes about {NEEDED_GB[engine]} GB. Free some"
            " space, or clone into a larger disk."
        )
    sources = read_sources()
    check_index(sources)
    if not have_uv:
        bootstrap: list[str | Path] = [
            PYTHON,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            UV,
        ]
        run("installing uv", bootstrap, "Check the network and pip's settings: pip config list.")
    target = "." if engine == "none" else f".[{engine}]"
    command: list[str | Path] = [
        VENV / "bin" / "uv",
        "pip",
        "install",
        "--python",
        PYTHON,
        # Half a minute here, and the first start of the server takes that much less: each of
        # its processes would compile vLLM and torch for itself.
        "--compile-bytecode",
        "--editable",
        target,
    ]
    command += uv_arguments(sources)
    if dev:
        command += ["--group", "dev"]
    if engine == "cpu":
        command += ["--excludes", EXCLUDES, *torch_arguments(sources)]
    engines = {"cuda": "vLLM for CUDA", "cpu": "vLLM for CPUs", "none": "no engine"}
    advice = "Run it again: it goes on where it stopped. docs/install.md has the known causes."
    extras = " and the development tools" if dev else ""
    run(f"installing llmserve, {engines[engine]}{extras}", command, advice, uv_environment(sources))


def setup(wanted: str, dev: bool) -> None:
    engine = choose_engine(wanted)
    if is_current(engine, dev):
        return
    with only_one():
        if is_current(engine, dev):
            return
        # Tools stay once they are there: `make serve` after `make test` keeps them.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            dev = dev or bool(json.loads(STAMP.read_text())["dev"])
        STAMP.unlink(missing_ok=True)
        install(engine, dev)
        write_stamp(engine, dev)
    say(f"done: {VENV}")


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description="Make .venv with llmserve and its engine.")
    parser.add_argument("--dev", action="store_true", help="with test and lint tools")
    parser.add_argument("--engine", choices=("auto", "cuda", "cpu", "none"), default="auto")
    options = parser.parse_args()
    try:
        setup(options.engine, options.dev)
    except Failure as failure:
        say(f"FAILED: {failure}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted; the next run goes on from here")
        sys.exit(130)
    except OSError as error:
        say(f"FAILED: {error}")
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
