# Two images from one file: `--target server` (small, no GPU libraries) and `--target worker` (CUDA).
# They are run from /app, the checkout: see docs/decisions/002-top-level-packages.md.

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    BITBUDGET_VAR_DIR=/var/lib/bitbudget BITBUDGET_MODEL_ROOTS=/models:/app
WORKDIR /app
RUN useradd --create-home --uid 10001 bitbudget && mkdir -p /var/lib/bitbudget /models \
    && chown bitbudget /var/lib/bitbudget
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY compress_core compress_core
COPY results_db results_db
COPY migrations migrations
COPY server server
COPY worker worker
COPY web web
COPY cli cli
COPY demo demo
COPY configs configs

FROM base AS server
RUN pip install --constraint constraints.txt --editable '.[server]'
USER bitbudget
EXPOSE 8000
CMD ["python", "-m", "uvicorn", "server.app:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "5"]

FROM base AS worker
# empty: the default index, whose Linux builds bring CUDA along; an index of CPU builds makes the `cpu` worker small
ARG TORCH_INDEX=
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
RUN pip install --constraint constraints.txt --editable '.[worker,s3]'
# Triton builds its launcher with it when a card first searches a trellis
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# compiled kernels outlive the container: compiling those of numba takes ten seconds
ENV OMP_WAIT_POLICY=PASSIVE NUMBA_CACHE_DIR=/var/lib/bitbudget/numba TRITON_CACHE_DIR=/var/lib/bitbudget/triton
USER bitbudget
CMD ["python", "-m", "worker"]
