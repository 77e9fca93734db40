"""What the library is told, field by field as `native.h` has it; tensors have to outlive what holds their addresses."""

import ctypes

LINEARS = ("query", "key", "value", "output", "gate", "up", "down")
"""Of a layer, in the order of `layers.cpp`."""


class Matrix(ctypes.Structure):
    """What `native.h` is told of a packed matrix; tensors have to outlive it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weights", "scales", "bias")),
        *(
            (name, ctypes.c_int64)
            for name in ("num_inputs", "num_outputs", "form", "stored_inputs")
        ),
    )


class Layer(ctypes.Structure):
    """What `layers.cpp` is told of a decoder layer; tensors have to outlive it."""

    _fields_ = (
        *((name, Matrix) for name in LINEARS),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("norm_before_attention", "norm_before_network", "norm_after_attention"),
                *("norm_after_network", "query_norm", "key_norm"),
            )
        ),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("width", "num_heads", "num_key_heads", "head_width", "inner_width"),
                *("adds_one", "is_gelu"),
            )
        ),
        ("epsilon", ctypes.c_double),
    )


class LowRank(ctypes.Structure):
    """What `layers.cpp` is told of what an adapter adds to a linear layer; `rank` 0 for nothing."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("down", "up")),
        ("rank", ctypes.c_int64),
    )


class Adapted(ctypes.Structure):
    """What `layers.cpp` is told of the adapters of a pass: the owner of every row, and each one's `LINEARS`."""

    _fields_ = (("owners", ctypes.c_void_p), ("matrices", ctypes.POINTER(LowRank)))


class StepLayer(ctypes.Structure):
    """What `layers.cpp` is told of a layer in a decoding step."""

    _fields_ = (
        ("layer", ctypes.POINTER(Layer)),
        ("adapted", ctypes.POINTER(Adapted)),
        *((name, ctypes.c_void_p) for name in ("key_table", "value_table")),
        ("window", ctypes.c_int64),
        ("scaling", ctypes.c_double),
    )


_NAMES_OF_POINTERS = (
    *("queries", "keys", "values", "key_table", "value_table", "positions", "outputs"),
)
_NAMES_OF_SIZES = (
    *("num_texts", "num_key_heads", "num_shared", "width", "query_text", "query_head"),
    *("key_text", "key_head", "value_text", "value_head", "table_text", "table_head", "window"),
)


class SlotJob(ctypes.Structure):
    """What `slot_attention.cpp` is told."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _NAMES_OF_POINTERS),
        *((name, ctypes.c_int64) for name in _NAMES_OF_SIZES),
        ("scaling", ctypes.c_double),
    )


class DocumentJob(ctypes.Structure):
    """What `attention.cpp` is told."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("queries", "keys", "values", "outputs", "prefix_keys", "prefix_values"),
                "lengths",
            )
        ),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("num_documents", "num_heads", "num_key_heads", "width", "num_prefix"),
                *("prefix_head", "prefix_token", "causal", "window"),
            )
        ),
        ("scaling", ctypes.c_double),
    )


class TrainedDocuments(ctypes.Structure):
    """What `short_attention.cpp` is told."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("queries", "keys", "values", "outputs", "gradients"),
                *("query_gradients", "key_gradients", "value_gradients", "lengths"),
            )
        ),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("num_documents", "num_heads", "num_key_heads", "width"),
                *("causal", "window"),
            )
        ),
        ("scaling", ctypes.c_double),
    )


class LowRankJob(ctypes.Structure):
    """What `low_rank.cpp` is told; tensors have to outlive it."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("rows", "down", "up", "narrow", "outputs", "gradients"),
                *("row_gradients", "down_gradients", "up_gradients"),
            )
        ),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_inputs", "num_outputs", "rank")),
        ("scaling", ctypes.c_double),
    )


class Moved(ctypes.Structure):
    """What `adamw.cpp` is told of a weight; tensors have to outlive it."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("gradient", "master", "first_moment", "second_moment", "shown")
        ),
        *((name, ctypes.c_int64) for name in ("count", "is_half")),
        *((name, ctypes.c_double) for name in ("rate", "decay")),
    )
