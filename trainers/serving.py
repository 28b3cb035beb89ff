"""Asking a deployed graph: ONNX Runtime, one request at a time, one thread."""

from pathlib import Path

import numpy as np
import onnxruntime


def open_session(onnx_file: Path) -> onnxruntime.InferenceSession:
    """A session that answers on the caller's thread alone."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])


def feeds(ids: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of a deployed graph for one row of token ids."""
    row = np.asarray(ids, dtype=np.int64)[None]
    return {"input_ids": row, "attention_mask": np.ones_like(row)}
