"""How many pages of memory a process takes anew; loads nothing but NumPy, so that a small process can ask."""


def taken() -> int:
    """Pages that this process takes while it holds forty megabytes three times, after it has held them before."""
    import resource

    import numpy as np

    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(3):
            held = [np.ones(500_000) for _ in range(10)]
            del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
