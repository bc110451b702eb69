"""A TFLite file as its own interpreter runs it: what an export is proven against."""

from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from app.lab.export.parity import FloatArray


def run_tflite(path: Path, faces: FloatArray) -> FloatArray:
    """What the TFLite interpreter answers to (n, 3, size, size) faces: (n, d).

    The batch stays the one the file was made with: faces go in by that number, and the last
    group is filled up with its last face.
    """
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    entry, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    step = int(entry["shape"][0])
    images, answers = faces.transpose(0, 2, 3, 1), []
    for start in range(0, len(images), step):
        group = images[np.minimum(np.arange(start, start + step), len(images) - 1)]
        interpreter.set_tensor(entry["index"], np.ascontiguousarray(group))
        interpreter.invoke()
        answers.append(interpreter.get_tensor(exit_["index"]))
    return np.asarray(np.concatenate(answers)[: len(faces)], np.float32)
