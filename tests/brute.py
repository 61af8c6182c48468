"""How many items are better than each target, and how many tie with it, item by item."""

import numpy as np
import torch


def brute(scores, data, split, mask=True):
    users, places = data.targets(split)
    found = []
    for u, place in zip(users, places, strict=True):
        own = scores[u].clone()
        target = int(data.item[place])
        score = float(own[target])
        if mask:
            history = [i for i in data.item[data.start[u] : place] if i != target]
            own[history] = -torch.inf
        others = np.delete(own.numpy(), target)
        found.append(((others > score).sum(), (others == score).sum()))
    return np.array(found, float).T
