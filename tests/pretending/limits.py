"""How often the host may wait for the GPU.

These numbers only fall: a test fails above them, and below them too; then lower them here.
"""

STEP = {  # a training step, by model
    "sasrec ce": 11,
    "sasrec bce": 12,
    "sasrec bf16": 11,
    "tiger": 9,
    "tone": 9,
    "tone free, items, decoder": 9,
    "tone channels bf16": 9,
    "frellm causal": 13,
    "frellm learnt": 13,
    "frellm global": 15,
    "frellm LoRA": 13,
    "frellm full": 11,
    "frellm sampled": 14,
    "frellm bf16": 13,
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
    "sasrec ce": 18,
    "tiger": 11,
    "tone": 10,
    "tone free, items, decoder": 12,
    "frellm causal": 21,
    "frellm global": 23,
}
