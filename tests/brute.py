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
            history = data.item[data.start[u] : place].tolist()
            own[history if target not in history else []] = -torch.inf
        others = np.delete(own.numpy(), target)
        found.append(((others > score).sum(), (others == score).sum()))
    return np.array(found, float).T
