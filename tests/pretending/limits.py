"""How often the host may wait for the GPU.

These numbers only fall: a test fails above them, and below them too; then lower them here.
"""

STEP = {  # a training step, by model
    "sasrec ce": 1,
    "sasrec bce": 1,
    "sasrec bf16": 1,
    "tiger": 1,
    "tone": 1,
    "tone free, items, decoder": 1,
    "tone channels bf16": 1,
    "frellm causal": 1,
    "frellm learnt": 1,
    "frellm global": 1,
    "frellm LoRA": 1,
    "frellm full": 1,
    "frellm sampled": 1,
    "frellm bf16": 1,
}
LEVEL = {"constrained": 0, "free": 0}  # a level of a beam search
SEARCH = {"constrained": 0, "free": 0}  # a whole one, once the index is there
ITERATION = {  # (an iteration over four blocks of rows, each further block)
    "gmm": (2, 0),
    "gmm tf32": (2, 0),
    "gmm bf16x3": (2, 0),
    "gmm spherical": (2, 0),
    "gmm tied": (4, 0),
    "gmm full": (3, 0),
    "kmeans": (2, 0),
    "balanced": (10, -0.25),
    "rqvae": (1, 0),
}
BLOCK = {  # a block of users that is ranked, by model
    "sasrec ce": 0,
    "tiger": 0,
    "tone": 0,
    "tone free, items, decoder": 0,
    "frellm causal": 0,
    "frellm global": 0,
}
