"""The operator: forward and backward passes of layers and networks, differentiated and batched."""

from . import batching as _  # noqa: F401  (registers how vmap batches the ops)
