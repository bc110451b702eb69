"""What the limits of connections and bodies cost: our server against uvicorn as it comes.

    python benchmarks/http_limits.py [--clients 16] [--seconds 4] [--rounds 7] [--other]

Both serve the same application from processes of their own and are asked in turn, round by round,
by load.py: calls that are refused (an unknown field), where the server is all there is, and photos
to detect faces in. Printed are the medians of the rates, and the medians of the ratios of each
round: of the rates, and of the calls answered in a second of the server's CPU time, which other
work on the machine changes less. `--other` adds hypercorn and granian where they are installed.
Loopback only, bounded in count and time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
PHOTO = HERE.parent / "tests" / "data" / "photos" / "obama.jpg"
START_S = 60


def make_app() -> object:
    """The application of a service whose data folder is LIKENESS_DATA_DIR."""
    from app.api.main import create_app  # noqa: PLC0415
    from app.services import build_services  # noqa: PLC0415
    from app.settings import Settings  # noqa: PLC0415

    return create_app(build_services(Settings()))


def serve(contender: str, port: int) -> None:
    """Be one of the servers."""
    sys.path.insert(0, str(HERE))
    name, host = "http_limits:make_app", "127.0.0.1"
    if contender == "ours":
        from app.api.server import Server  # noqa: PLC0415
        from app.settings import Settings  # noqa: PLC0415

        Server(make_app(), Settings(port=port)).run()  # type: ignore[arg-type]
    elif contender == "uvicorn":
        import uvicorn  # noqa: PLC0415

        uvicorn.run(make_app(), port=port, log_config=None, access_log=False, timeout_keep_alive=75)  # type: ignore[arg-type]
    elif contender == "hypercorn":
        os.execvp(
            sys.executable,
            [
                sys.executable,
                "-m",
                "hypercorn",
                "-k",
                "uvloop",
                "-b",
                f"{host}:{port}",
                f"{name}()",
            ],
        )
    else:
        os.execvp(
            sys.executable,
            [
                sys.executable,
                "-m",
                "granian",
                "--interface",
                "asgi",
                "--factory",
                "--port",
                str(port),
                "--no-ws",
                name,
            ],
        )


@contextmanager
def running(contender: str, port: int, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A server until the block ends: its port and its process."""
    path = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "LIKENESS_DATA_DIR": str(folder),
        "PYTHONPATH": os.pathsep.join(path).rstrip(os.pathsep),
    }
    command = [
        sys.executable,
        str(HERE / "http_limits.py"),
        "--serve",
        contender,
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
                break
            time.sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def rate(
    server: tuple[int, psutil.Process], path: str, photo: str, options: argparse.Namespace
) -> tuple[float, float]:
    """Calls answered in a second, and in a second of the server's CPU time."""
    port, process = server
    order = {
        "port": port, "path": path, "photos": [photo],
        "clients": options.clients, "seconds": options.seconds,
    }  # fmt: skip
    before = sum(process.cpu_times()[:2])
    reported = subprocess.run(
        [sys.executable, str(HERE / "load.py"), json.dumps(order)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    result = json.loads(reported.stdout)
    answered = sum(n for status, n in result["statuses"].items() if status != "-1")
    used = sum(process.cpu_times()[:2]) - before
    return answered / float(result["spent_s"]), answered / max(used, 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--other", action="store_true")
    parser.add_argument("--serve")
    parser.add_argument("--port", type=int, default=8970)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.port)
        return
    contenders = ["ours", "uvicorn"]
    if options.other:
        contenders += [one for one in ("hypercorn", "granian") if find_spec(one)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tiny = folder / "tiny.jpg"
        tiny.write_text("no photo")
        servers = {
            one: stack.enter_context(running(one, options.port + n, folder / one))
            for n, one in enumerate(contenders)
        }
        for path, body in (("/v1/detect?top_k=1", tiny), ("/v1/detect", PHOTO)):
            compare(path, str(body), servers, options)


def compare(
    path: str,
    body: str,
    servers: dict[str, tuple[int, psutil.Process]],
    options: argparse.Namespace,
) -> None:
    """Round by round, in an order that changes."""
    rates: dict[str, list[tuple[float, float]]] = {one: [] for one in servers}
    for number in range(options.rounds):
        order = list(servers) if number % 2 else list(reversed(servers))
        for one in order:
            rates[one].append(rate(servers[one], path, body, options))
    for one, found in rates.items():
        pairs = list(zip(found, rates["uvicorn"], strict=True))
        whole, cpu = (statistics.median(a[n] / b[n] for a, b in pairs) for n in (0, 1))
        print(
            f"{path:20} {one:10} {statistics.median(each for each, _ in found):8.1f}/s  "
            f"of uvicorn's {whole:.3f}, a second of CPU {cpu:.3f}"
        )


if __name__ == "__main__":
    main()
