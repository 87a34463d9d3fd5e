"""What a pack keeps of its images while it is finished: those for the sheet alone."""

from __future__ import annotations

import torch

from datafree.api.synthesis import _every


def test_images_for_the_sheet_do_not_keep_their_batches():
    batches = torch.randn(12, 1, 4, 4).split(5)
    found, seen = [], 0
    for batch in batches:
        found += _every(batch, seen, 4)
        seen += len(batch)
    assert torch.equal(torch.stack(found), torch.cat(batches)[::4])
    assert all(image.untyped_storage().nbytes() == 16 * 4 for image in found)
