"""Exercises of notebook 05: what if A never moves?"""

from typing import Any

from fedlora_lab.exercises.exercise import Exercise, Mistake, near, number

RANK = 192


def moved(factor: float) -> tuple[float, float]:
    """Learning rate and clip norm that go with alpha times ``factor``, from 0.2 and 1."""
    return 0.2 / factor**2, 1.0 * factor


def pair(answer: Any) -> tuple[float, float]:
    """Two numbers; ``ValueError`` otherwise."""
    try:
        first, second = answer
    except (TypeError, ValueError) as error:
        raise ValueError("a pair such as (0.2, 1.0) is expected") from error
    return number(first), number(second)


def is_pair(first: float, second: float):
    """Whether a pair is this one up to rounding."""
    return lambda value: near(first)(value[0]) and near(second)(value[1])


EXERCISES = (
    Exercise(
        key="05.1",
        question=(
            "You tuned FFA-LoRA with plain SGD at α = 8: learning rate 0.2, clip norm C = 1, noise multiplier σ. A "
            "colleague insists on α = 32 at the same rank. Which learning rate and which clip norm give the same run, "
            "step by step? Answer with a pair (η, C); σ stays."
        ),
        hint=(
            "Follow s·B, the only thing the model sees. The gradient for B carries a factor s, and s·B carries another "
            "one. Then ask at which length a gradient that has become c times longer should be clipped."
        ),
        solution=(
            "α grows by c = 4, so s does. The gradient for B is s·G·Aᵀ: it is 4 times longer, so C = 4 clips the same "
            "examples at the same point, and the noise σC grows along. A step moves s·B by s·η·(s·…), which is 16 "
            "times more, so η = 0.2 / 16 = 0.0125. The answer is (0.0125, 4.0)."
        ),
        answer=lambda: moved(4.0),
        read=pair,
        right=is_pair(0.0125, 4.0),
        why="η falls with the square of c because s enters twice, in the gradient and in s·B; C grows with c.",
        mistakes=(
            Mistake((0.05, 4.0), is_pair(0.05, 4.0), "C is right; s enters the step twice, so η must fall by more."),
            Mistake(
                (0.0125, 1.0),
                is_pair(0.0125, 1.0),
                "η is right; but gradients are now 4 times longer, and C = 1 would clip almost all of them harder.",
            ),
            Mistake((0.05, 1.0), is_pair(0.05, 1.0), "neither yet: s enters the step twice, and the clip has to move."),
            Mistake((3.2, 0.25), is_pair(3.2, 0.25), "the other way round: a larger α needs a smaller step."),
            Mistake((0.0125, 0.25), is_pair(0.0125, 0.25), "η is right; longer gradients need a larger C, not less."),
            Mistake((0.2, 1.0), is_pair(0.2, 1.0), "nothing changed: then s·B moves 4 to 16 times further in a step."),
        ),
        others=([0.0125, 4], ("0.0125", "4")),
        difficulty=2,
        minutes=6,
    ),
    Exercise(
        key="05.2",
        question=(
            "A layer reads d_in = 768 numbers. A is drawn at random and never moves. Which rank do you need so that, "
            "on average, a quarter of the energy (squared norm) of any wanted change can be reached?"
        ),
        hint="What share of a fixed direction lies, on average, in the space that r random directions span?",
        solution="The share is r / d_in on average, so r = 0.25 · 768 = 192. With both factors free, rank 1 reaches "
        "all of a change that has one direction.",
        answer=lambda: RANK,
        read=number,
        right=near(float(RANK)),
        why="the share of the energy is r / d_in: a frozen random A is cheap for noise and bytes, not for reach.",
        mistakes=(
            Mistake(48, near(48.0), "that is a quarter of the energy squared; the share of energy itself is r / d_in."),
            Mistake(384, near(384.0), "that reaches half of the energy, a quarter was asked."),
            Mistake(576, near(576.0), "576 directions are left out, not kept; you took the part that is missed."),
            Mistake(4, near(4.0), "1 / 0.25 = 4 forgets how many inputs the layer has: reach is r out of d_in."),
            Mistake(3072, near(3072.0), "more directions than the layer has inputs; multiply by the share instead."),
        ),
        others=(192.0, "192"),
        difficulty=1,
        minutes=4,
    ),
)
