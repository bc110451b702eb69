"""Likeness: a self-hosted face recognition service."""

import os

__version__ = "0.1.0"

# When ONNX Runtime is imported without this variable, it sends usage reports to Microsoft and keeps
# a device id in the home folder. This file runs before anything can import it: the only side effect
# of an import in this project. An empty value counts as not set.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"
