"""What the limits of connections and bodies cost: our server against uvicorn as it comes.

    python benchmarks/http_limits.py [--clients 16] [--seconds 4] [--rounds 7] [--other]

Both serve the same application from processes of their own and are asked in turn, round by round,
by load.py: calls that are refused (an unknown field), where the server is all there is, and photos
to detect faces in. Printed are the rates' medians and the median of the ratios of each round.
`--other` adds hypercorn and granian where they are installed. Loopback only, bounded in count and
time.
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
def running(contender: str, port: int, folder: Path) -> Iterator[int]:
    """A server until the block ends."""
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
        yield port
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def rate(port: int, path: str, photo: str, options: argparse.Namespace) -> float:
    """Calls answered in a second."""
    order = {
        "port": port, "path": path, "photos": [photo],
        "clients": options.clients, "seconds": options.seconds,
    }  # fmt: skip
    reported = subprocess.run(
        [sys.executable, str(HERE / "load.py"), json.dumps(order)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    result = json.loads(reported.stdout)
    answered = sum(n for status, n in result["statuses"].items() if status != "-1")
    return answered / float(result["spent_s"])


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
        ports = {
            one: stack.enter_context(running(one, options.port + n, folder / one))
            for n, one in enumerate(contenders)
        }
        for path, body in (("/v1/detect?top_k=1", tiny), ("/v1/detect", PHOTO)):
            compare(path, str(body), ports, options)


def compare(path: str, body: str, ports: dict[str, int], options: argparse.Namespace) -> None:
    """Round by round, in an order that changes."""
    rates: dict[str, list[float]] = {one: [] for one in ports}
    for number in range(options.rounds):
        order = list(ports) if number % 2 else list(reversed(ports))
        for one in order:
            rates[one].append(rate(ports[one], path, body, options))
    for one, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates["uvicorn"], strict=True)]
        print(
            f"{path:20} {one:10} {statistics.median(found):8.1f}/s  "
            f"of uvicorn's {statistics.median(ratios):.3f}"
        )


if __name__ == "__main__":
    main()
