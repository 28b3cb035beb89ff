"""Asking a deployed graph: ONNX Runtime, one request at a time, one thread."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from trainers.tokens import Tokens


def open_session(onnx_file: Path) -> onnxruntime.InferenceSession:
    """A session that answers on the caller's thread alone."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])


def feeds(ids: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of a deployed graph for the token ids of one row, or of several of one length: rows × length."""
    rows = np.atleast_2d(np.asarray(ids, dtype=np.int64))
    return {"input_ids": rows, "attention_mask": np.ones_like(rows)}


def predict(onnx_file: Path, tokens: Tokens, *, threads: int) -> np.ndarray:
    """The label (int64) that a deployed graph gives each row, on ``threads`` threads.

    Rows go one by one, as they are served: a dynamically quantised graph takes the range of its activations from the
    whole batch, so that its answers would depend on a row's neighbours.
    """
    session = open_session(onnx_file)

    def label(row: int) -> int:
        return int(session.run(["logits"], feeds(tokens.ids(row)))[0][0].argmax())

    with ThreadPoolExecutor(threads) as pool:
        return np.fromiter(pool.map(label, range(len(tokens))), dtype=np.int64, count=len(tokens))
