"""In which precision everything is evaluated: float32, whatever a model was trained in."""

from functools import partial

from distrec.codes.mixture.precision import tf32

exact_products = partial(tf32, False)
"""Turn TF32 off inside a `with`, or a function, and back to what it was at the end: 10 bits of mantissa would make ties and
move ranks.  A backbone that is stored in bfloat16 or in 4 bits computes in its own type all the same."""
