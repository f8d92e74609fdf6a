"""Whether an array holds NaN or infinity: one flag per program, cheap enough to follow every forward pass.

16-bit activations overflow to infinity in networks whose weights are large; nothing downstream makes a number of that
again, so that a look at the output is enough.
"""

from restort.kernels.sentinel.kernel import LIMIT, launch, programs
from restort.kernels.sentinel.reference import non_finite

__all__ = ["LIMIT", "launch", "non_finite", "programs"]
