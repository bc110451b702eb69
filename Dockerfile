# Pinned by digest: docs/docker.md, "The base image", says how to renew it. Any Debian with `python3 -m venv`, 3.11 or
# newer, does (--build-arg BASE_IMAGE=...).
ARG BASE_IMAGE=python:3.12.14-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254

# ---- everything that is installed; the build backend and unused files are removed at the end
FROM ${BASE_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

RUN python3 -m venv /opt/venv

# The lock alone first: this layer is reused until a pin moves.
FROM build AS build-cpu
COPY requirements/cpu.txt requirements/
RUN /opt/venv/bin/python -m pip install --no-deps --require-hashes --only-binary :all: -r requirements/cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY models models
COPY scripts/trim_packages.py scripts/
RUN /opt/venv/bin/python -m pip install --no-deps --no-build-isolation . \
    && /opt/venv/bin/python -m pip uninstall --yes hatchling pathspec pluggy tomlkit trove-classifiers pip \
    && /opt/venv/bin/python scripts/trim_packages.py

# CUDA's libraries come as wheels; the host brings the driver and NVIDIA's container toolkit.
FROM build AS build-gpu
COPY requirements/gpu.txt requirements/
RUN /opt/venv/bin/python -m pip install --no-deps --require-hashes --only-binary :all: -r requirements/gpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY models models
COPY scripts/trim_packages.py scripts/
RUN /opt/venv/bin/python -m pip install --no-deps --no-build-isolation . \
    && /opt/venv/bin/python -m pip uninstall --yes hatchling pathspec pluggy tomlkit trove-classifiers pip \
    && /opt/venv/bin/python scripts/trim_packages.py

# ---- what is shipped
FROM ${BASE_IMAGE} AS service

# A fixed number, so that the owner of the volume is the same on every host and in every release.
RUN groupadd --gid 10001 likeness \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin likeness \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data

# The service sets ORT_DISABLE_TELEMETRY itself; here it is for whatever else runs in the image.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    LIKENESS_HOST=0.0.0.0 \
    LIKENESS_PORT=8000 \
    LIKENESS_DATA_DIR=/data \
    LIKENESS_FIRST_KEY_FILE=/data/first-key
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import os, ssl, urllib.request as r; tls = os.environ.get('LIKENESS_TLS_CERT'); r.urlopen(('https' if tls else 'http') + '://127.0.0.1:' + os.environ['LIKENESS_PORT'] + '/readyz', timeout=4, context=ssl._create_unverified_context() if tls else None)"]
CMD ["likeness", "serve"]

# `make image` gives the commit; a test holds the version to pyproject.toml's.
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Likeness" \
      org.opencontainers.image.description="Self-hosted face recognition service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"

FROM service AS gpu
COPY --from=build-gpu /opt/venv /opt/venv
ENV LIKENESS_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last stage, so that it is what a plain `docker build .` makes.
FROM service AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
RUN ["/opt/venv/bin/python", "-c", "import app, cv2, faiss, onnxruntime, pyarrow.parquet, scipy.optimize"]
