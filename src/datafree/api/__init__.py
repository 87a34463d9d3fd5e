"""The Python face: from models to a saved result, and from models to a pack of images."""

from datafree.api.compression import Result, compress

__all__ = ["Result", "compress"]
