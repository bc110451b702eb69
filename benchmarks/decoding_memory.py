"""Memory and time of decoding one photo, by format and size, against the estimate from its header.

    python benchmarks/decoding_memory.py [--megapixels 12 40] [--photo FILE ...]

Each photo is decoded in a process of its own that has decoded a small one before; the memory is
the peak beyond what it held then, of the decoder process too. The time is a median.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from app.imaging import ImageLimits, PhotoDecoder, estimate_memory, read_header
from app.imaging.limits import is_suspicious

MIB = 1024 * 1024
HEIC = Path(__file__).parents[1] / "tests" / "data" / "heic"


def picture(megapixels: float, mode: str) -> PillowImage.Image:
    """A soft picture with some grain, 4:3: what a camera makes of a wall."""
    height = int((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = int(height * 4 / 3)
    small = np.random.default_rng(1).integers(60, 200, (height // 16, width // 16, 3), np.uint8)
    image = PillowImage.fromarray(small).resize((width, height), PillowImage.Resampling.BICUBIC)
    if mode == "RGBA":
        image.putalpha(image.getchannel(0))
        return image
    if mode == "I;16":
        return PillowImage.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    return image.quantize(64) if mode == "P" else image.convert(mode)


# What is measured: a name, the picture's mode, and how it is saved.
KINDS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("JPEG", "RGB", "JPEG", {"quality": 85}),
    ("JPEG, progressive, 4:4:4", "RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    ("JPEG, progressive, CMYK", "CMYK", "JPEG", {"progressive": True, "quality": 60}),
    ("PNG", "RGB", "PNG", {"compress_level": 1}),
    ("PNG with transparency", "RGBA", "PNG", {"compress_level": 1}),
    ("PNG, 16-bit grey", "I;16", "PNG", {"compress_level": 1}),
    ("PNG, palette with transparency", "P", "PNG", {"transparency": 3}),
    ("WebP", "RGB", "WEBP", {"method": 0}),
    ("WebP with transparency", "RGBA", "WEBP", {"method": 0, "quality": 60}),
    ("WebP, lossless, with transparency", "RGBA", "WEBP", {"method": 0, "lossless": True}),
    ("WebP, animated", "RGBA", "WEBP", {"method": 0, "quality": 30, "save_all": True}),
    ("AVIF", "RGB", "AVIF", {"speed": 10, "quality": 50}),
    ("AVIF with transparency, 4:4:4", "RGBA", "AVIF", {"speed": 10, "subsampling": "4:4:4"}),
]


def encode(kind: tuple[str, str, str, dict[str, Any]], megapixels: float) -> bytes:
    _, mode, form, options = kind
    image, buffer = picture(megapixels, mode), io.BytesIO()
    if options.get("save_all"):
        options = options | {"append_images": [PillowImage.new(mode, image.size, "white")]}
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tiny_webp() -> bytes:
    """46 bytes that claim 40 megapixels with transparency."""
    bits = (8_000 - 1) | (5_000 - 1) << 14 | 1 << 28
    chunk = b"\x2f" + bits.to_bytes(4, "little") + b"\x88\x88\x08" + bytes(18)
    body = b"WEBPVP8L" + len(chunk).to_bytes(4, "little") + chunk
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def status(pid: int | str, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(path: Path, repeat: int) -> dict[str, float]:
    """Decode the file in this process; what it took."""
    limits = ImageLimits(max_bytes=1 << 31, max_pixels=1 << 28, decode_seconds=300)
    data, decoder = path.read_bytes(), PhotoDecoder(limits)
    decoder.decode(encode(KINDS[0], 0.01))
    header = read_header(data)
    if header and is_suspicious(data, header):
        decoder.decode((HEIC / "plain.heic").read_bytes())
    processes: list[int | str] = ["self"]
    processes += [process._process.pid for process in decoder._idle]
    before = {pid: status(pid, "VmRSS") for pid in processes}
    for pid in processes:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        photo = decoder.decode(data)
        times.append(time.perf_counter() - start)
        del photo
    peak = sum(status(pid, "VmHWM") - before[pid] for pid in processes)
    decoder.close()
    return {"peak": peak, "seconds": statistics.median(times)}


def report(name: str, data: bytes, folder: Path, repeat: int) -> None:
    file = folder / "photo"
    file.write_bytes(data)
    command = [sys.executable, __file__, "--measure", str(file), "--repeat", str(repeat)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        said = run.stderr.strip().splitlines()[-1:] or ["nothing"]
        print(f"| {name} | exit status {run.returncode}: {said[0]} |", flush=True)
        return
    found = json.loads(run.stdout)
    promised = estimate_memory(data)
    print(
        f"| {name} | {len(data) / MIB:.1f} | {found['peak'] / MIB:.0f} | {promised / MIB:.0f} | "
        f"{found['seconds']:.2f} |{' MORE THAN PROMISED' * (found['peak'] > promised)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megapixels", type=float, nargs="+", default=[12, 40])
    parser.add_argument("--repeat", type=int, default=3, help="of which the median time is shown")
    parser.add_argument("--only", default="", help="kinds whose names hold this")
    parser.add_argument("--photo", type=Path, nargs="*", default=[])
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="for one large file")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.repeat)))
        return
    print("| photo | MiB | peak MiB | by its header | seconds |\n|---|---|---|---|---|")
    for megapixels in arguments.megapixels:
        for kind in (kind for kind in KINDS if arguments.only in kind[0]):
            data = encode(kind, min(megapixels, 39.99))
            report(f"{kind[0]}, {megapixels:g} MP", data, arguments.folder, arguments.repeat)
    report("WebP of 46 bytes that claims 40 MP", tiny_webp(), arguments.folder, arguments.repeat)
    for photo in arguments.photo:
        report(photo.name, photo.read_bytes(), arguments.folder, arguments.repeat)


if __name__ == "__main__":
    main()
