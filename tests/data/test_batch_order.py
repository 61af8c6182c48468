"""In which order an epoch's steps come."""

import numpy as np

from distrec.data import batches


def test_steps_do_not_come_by_length(small):
    """A stretch is sorted by length to be cut; its batches are shuffled again, or every epoch would end with long ones."""
    samples = batches.training(small, "sequences", 20)
    orders = []
    for epoch in range(6):
        steps = batches.steps(samples, 100, 0, epoch)
        assert sorted(np.concatenate(steps).tolist()) == list(range(len(samples)))
        longest = np.array([samples.lengths(rows).max() for rows in steps])
        orders.append(np.corrcoef(np.arange(len(longest)), longest)[0, 1])
        assert (np.diff(longest) < 0).any()
    assert abs(np.mean(orders)) < 0.4
    assert len(set(orders)) == len(orders)
