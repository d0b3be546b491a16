"""Calls a step and lays all that leaves it into one vector, in the order of its names."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dp_review._validation import check, printable
from dp_review.claims import Step
from dp_review.neighbours import Batch, Example, to_array

FIRST_SEED = 1000
ROUNDING = 1e-5
"""Relative change of a number that is taken for rounding."""


class StepFailed(Exception):
    """A step raised an error of its own.

    Args:
        error: what was raised.
        examples: the batch that the step was called with.
    """

    def __init__(self, error: BaseException, examples: Sequence[Example]) -> None:
        try:
            text = printable(str(error))[:100]
        except Exception:  # an error that cannot even be printed
            text = ""
        super().__init__(f"{type(error).__name__}: {text}" if text else type(error).__name__)
        self.examples = examples


def failing_example(
    function: Step, examples: Sequence[Example], data: Sequence[Example]
) -> int | None:
    """Place in the data of an example of a batch that makes the step fail by itself.

    Args: function: the step. examples: the batch. data: where examples are looked up.
    """
    for place, example in enumerate(data):
        if any(example is other for other in examples):
            try:
                function([example], FIRST_SEED)
            except (Exception, SystemExit):
                return place
    return None


class Outputs:
    """What leaves a step, as one vector, and between which values each number of it has been.

    Args:
        function: see `dp_review.step`.
        seed: of the seeds that the step is given.
        first: examples of the first call, which decides names and shapes.
    """

    def __init__(self, function: Step, seed: int, first: Batch) -> None:
        check(callable(function), "function", function, "(examples, seed) -> name -> array")
        self.function = function
        # Seeds of two reviews do not overlap, however many calls either makes. Noise may be drawn
        # from the seed before, which must not be negative.
        self.base = FIRST_SEED + seed * 1_000_003
        arrays = self._read(first, 0)
        self.shapes = {name: x.shape for name, x in arrays.items()}
        ends = np.cumsum([x.size for x in arrays.values()]).tolist()
        self.places = {name: slice(a, b) for name, a, b in zip(arrays, [0, *ends[:-1]], ends)}
        self.size = ends[-1]
        self.low = np.full(self.size, np.inf)
        self.high = np.full(self.size, -np.inf)
        self.resized: set[str] = set()

    def _read(self, examples: Sequence[Example], draw: int) -> dict[str, np.ndarray]:
        """Calls the step and reads its mapping."""
        try:
            returned = self.function(list(examples), self.base + draw)
        # What stops a training is seen by everybody, whatever it is: also a script that exits.
        except (Exception, SystemExit) as error:
            raise StepFailed(error, examples) from error
        named = isinstance(returned, Mapping) and bool(returned)
        check(named, "function", type(returned).__name__, "to return name -> array, one at least")
        arrays: dict[str, np.ndarray] = {}
        for name, value in returned.items():
            try:
                arrays[str(name)] = to_array(value)
            except (TypeError, ValueError):
                check(False, f"function[{name!r}]", type(value).__name__, "a real array or number")
        return arrays

    def __call__(self, examples: Sequence[Example], draw: int) -> np.ndarray:
        """What leaves for these examples and this draw of noise, (numbers,).

        Args: examples: a batch. draw: number of the seed.
        """
        arrays = self._read(examples, draw)
        vector = np.zeros(self.size)
        for name, shape in self.shapes.items():
            if name in arrays and arrays[name].shape == shape:
                vector[self.places[name]] = arrays[name].ravel()
        # Shapes and values of all calls are remembered: un-noised outputs must not move.
        shapes = {name: x.shape for name, x in arrays.items()}
        # Pairs of a name and a shape that only one of the two has.
        self.resized |= {name for name, _ in shapes.items() ^ self.shapes.items()}
        # NaN is left to the check of examples that are not finite.
        self.low = np.fmin(self.low, vector)
        self.high = np.fmax(self.high, vector)
        return vector

    def changes(self, ignored: np.ndarray) -> dict[str, float]:
        """Output -> how far its numbers have moved in all calls; infinite where its shape did.

        Args: ignored: (numbers,), those that may move.
        """
        with np.errstate(all="ignore"):
            moved = self.high - self.low
            # Sums in another order differ in their last digits; that tells nobody anything.
            rounding = ROUNDING * np.maximum(np.abs(self.low), np.abs(self.high))
        moved = np.where(ignored | (moved < rounding), 0.0, moved)
        most = {name: float(moved[place].max(initial=0.0)) for name, place in self.places.items()}
        return most | dict.fromkeys(self.resized, math.inf)
