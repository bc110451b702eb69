"""Likeness: a self-hosted face recognition service."""

import os

__version__ = "0.1.0"

# From its import on, ONNX Runtime reports its use to its maker and keeps a device id in the home
# folder, unless this is set by then. Whatever imports it (we, InsightFace, PyTorch's exporter),
# this file runs first: the one side effect of an import here. An empty value counts as none.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"
