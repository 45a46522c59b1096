"""llama.cpp's own HTTP server as `xllamacpp` brings it: `llama_server.py MODEL PORT SLOTS CONTEXT`.

Run by the engines' own Python. It is the server that `llama-server` is, started from Python; the
options are those of `llama-server -m MODEL --alias STEM --port PORT -np SLOTS -c CONTEXT -t 1
--metrics --no-ui`, and with a fifth word `--embeddings --pooling mean`. It ends with its parent.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

import xllamacpp

_PR_SET_PDEATHSIG = 1


def main(model: str, port: str, slots: str, context: str, *embeddings: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {Path(model).stem}
    params.port = int(port)
    params.n_parallel = int(slots)
    params.n_ctx = int(context)
    params.endpoint_metrics = True
    params.ui = False
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    if embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
