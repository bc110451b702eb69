"""The peer: `insightface.app.FaceAnalysis` behind FastAPI, as it is commonly deployed.

    python benchmarks/peer.py --port 9000 --models FOLDER_WITH_det_500m_AND_w600k_mbf

A plain `def` endpoint, so FastAPI's thread pool calls `get`; ONNX Runtime's default threads,
detection at 640. It takes the same raw body as Likeness and answers boxes, landmarks, embeddings.
"""

import argparse
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, Request
from insightface.app import FaceAnalysis


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "models" / "pack"
        folder.mkdir(parents=True)
        for name in ("det_500m.onnx", "w600k_mbf.onnx"):
            shutil.copy(options.models / name, folder / name)
        # It reads them again for each new input size.
        uvicorn.run(create_app(root), port=options.port, log_level="warning", access_log=False)


async def read_body(request: Request) -> bytes:
    return await request.body()


def create_app(root: str) -> FastAPI:
    analysis = FaceAnalysis(
        name="pack", root=root, allowed_modules=["detection", "recognition"],
        providers=["CPUExecutionProvider"],
    )  # fmt: skip
    analysis.prepare(ctx_id=-1, det_size=(640, 640))
    app = FastAPI()

    @app.post("/v1/embed")
    def embed(body: Annotated[bytes, Depends(read_body)]) -> list[dict[str, Any]]:
        image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
        return [
            {
                "box": face.bbox.tolist(),
                "landmarks": face.kps.tolist(),
                "score": float(face.det_score),
                "embedding": face.normed_embedding.tolist(),
            }
            for face in analysis.get(image)
        ]

    @app.get("/livez")
    def livez() -> dict[str, str]:
        return {"status": "alive"}

    return app


if __name__ == "__main__":
    main()
