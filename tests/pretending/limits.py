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
    "frellm causal": 3,
    "frellm learnt": 3,
    "frellm global": 5,
    "frellm LoRA": 3,
    "frellm full": 1,
    "frellm sampled": 3,
    "frellm bf16": 3,
}
LEVEL = {"constrained": 0, "free": 0}  # a level of a beam search
SEARCH = {"constrained": 2, "free": 4}  # a whole one, once the index is there
ITERATION = {  # (an iteration over four blocks of rows, each further block)
    "gmm": (9, 1),
    "gmm tf32": (9, 1),
    "gmm bf16x3": (9, 1),
    "gmm spherical": (9, 1),
    "gmm tied": (17, 2),
    "gmm full": (11, 1),
    "kmeans": (11, 2),
    "balanced": (66, 2.25),
    "rqvae": (9, 0),
}
BLOCK = {  # a block of users that is ranked, by model
    "sasrec ce": 13,
    "tiger": 6,
    "tone": 5,
    "tone free, items, decoder": 7,
    "frellm causal": 16,
    "frellm global": 18,
}
