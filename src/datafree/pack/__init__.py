"""Synthetic images in a folder, with their soft labels and where they come from: written, and read by whoever."""

from datafree.pack.pack import Pack, open_pack
from datafree.pack.write import FILES, write_pack

__all__ = ["FILES", "Pack", "open_pack", "write_pack"]
