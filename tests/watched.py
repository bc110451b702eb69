"""Runs a command in a network namespace of its own, under strace: what it sends, what it writes.

The namespace has a loopback interface and nothing else, so that nothing sent elsewhere arrives; an
attempt is seen all the same.
"""

import ipaddress
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Brings up the loopback interface (SIOCSIFFLAGS, IFF_UP) and becomes the command.
LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))
os.execvp(sys.argv[1], sys.argv[1:])
"""
NAMESPACE = ["unshare", "--map-root-user", "--net", sys.executable, "-c", LOOPBACK_UP]
CALLS = "%network,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink"
STRACE = ["strace", "-f", "-y", "-qq", "-e", "signal=none", "-e", f"trace={CALLS}"]

_SEND = re.compile(r"\b(?:connect|sendto|sendmsg|sendmmsg)\(.*sa_family=AF_INET")
_ADDRESS = re.compile(r'(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_WRITE = re.compile(r"\b(?:mkdir|rename|link|symlink|creat)(?:at2?)?\(|O_CREAT")
# The last path of a call, which is the one that appears, and the folder it is relative to.
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"')
_DNS = 53


@dataclass(frozen=True, slots=True)
class Watched:
    """What a command did: its exit status and output, each send beyond this machine, and each path
    that it made outside the folders it may write to."""

    status: int
    output: str
    sent: tuple[str, ...]
    made: tuple[str, ...]


def why_not() -> str | None:
    """Why nothing can be watched on this machine, or None."""
    for tool in ("unshare", "strace"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    done = subprocess.run(
        [*NAMESPACE, *STRACE, "-o", os.devnull, "true"], capture_output=True, text=True, check=False
    )
    return f"no namespace with strace here: {done.stderr.strip()}" if done.returncode else None


def watch(
    command: Sequence[str | Path], folder: Path, settings: Mapping[str, str], seconds: float
) -> Watched:
    """Run `command` with a home, a working folder and a folder for temporary files that are empty
    and stay so, and with data in `folder / "data"`. Raises TimeoutExpired after `seconds`."""
    for name in ("home", "cwd", "tmp", "data"):
        (folder / name).mkdir(exist_ok=True)
    left_out = ("LIKENESS_", "XDG_", "ORT_", "MPL")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    environment |= {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LIKENESS_DATA_DIR": str(folder / "data"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **settings,
    }
    log = folder / "strace"
    done = subprocess.run(
        [*NAMESPACE, *STRACE, "-o", log, *command],
        cwd=folder / "cwd", env=environment, timeout=seconds, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = log.read_text(errors="replace").splitlines()
    allowed, system = (folder / "data", folder / "tmp"), (Path("/dev"), Path("/proc"))
    made = [
        path
        for path in map(_made, lines)
        # The folder itself may be below /dev: in memory.
        if path
        and not _within(path, allowed)
        and (_within(path, (folder,)) or not _within(path, system))
    ]
    left = [str(path) for name in ("home", "cwd", "tmp") for path in (folder / name).rglob("*")]
    return Watched(done.returncode, done.stdout, tuple(filter(_leaves, lines)), (*made, *left))


def _leaves(line: str) -> bool:
    """Whether a call sends to another machine, or asks a name server, wherever that is."""
    if not _SEND.search(line):
        return False
    hosts = [ipaddress.ip_address(host) for host in _ADDRESS.findall(line)]
    asks = str(_DNS) in _PORT.findall(line)
    return asks or not hosts or not all(host.is_loopback for host in hosts)


def _made(line: str) -> str | None:
    """The path that a call made, None where it made none."""
    call, _, result = line.rpartition(" = ")
    if not _WRITE.search(call) or result.startswith("-1"):
        return None
    base, name = _PATH.findall(call)[-1]
    return os.path.normpath(Path(base) / name)


def _within(path: str, folders: Sequence[Path]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)
