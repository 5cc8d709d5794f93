"""The structs of model.h as Python sees them, field by field."""

import ctypes

import numpy as np

IDLE, RUNNING, ENDED, FULL = range(4)
"""States of a sequence; ENDED by an end token, FULL at its limit."""

SEGMENT = np.dtype([("data", np.uint64), ("capacity", np.int32), ("length", np.int32)], align=True)
"""Keys and values of consecutive positions."""

SEQUENCE = np.dtype(
    [
        ("prefix", SEGMENT),
        ("own", SEGMENT),
        ("uniforms", np.uint64),
        ("tokens", np.uint64),
        ("logprobs", np.uint64),
        ("logits", np.uint64),
        ("temperature", np.float32),
        ("token", np.int32),
        ("count", np.int32),
        ("limit", np.int32),
        ("ignore_end", np.int32),
        ("state", np.int32),
    ],
    align=True,
)
"""A sequence in flight; pointers as addresses."""


class Linear(ctypes.Structure):
    """A packed matrix and its bias."""

    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
    )


class Layer(ctypes.Structure):
    """One decoder layer."""

    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("qkv", Linear),
        ("o", Linear),
        ("gate_up", Linear),
        ("down", Linear),
    )


class Model(ctypes.Structure):
    """A model."""

    _fields_ = (
        ("layers", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("intermediate", ctypes.c_int32),
        ("vocab", ctypes.c_int32),
        ("gelu", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
        ("embedding_scale", ctypes.c_float),
        ("embedding", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("head", Linear),
        ("layer", ctypes.POINTER(Layer)),
    )
