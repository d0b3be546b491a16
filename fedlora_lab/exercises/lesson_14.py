"""Exercises of notebook 14: how do I use this on my model and my data, at scale?"""

from fedlora_lab.exercises.exercise import Exercise, Mistake, near, number


def bytes_up(clients: int = 10_000, share: float = 0.01, numbers: int = 4_096, width: int = 4) -> float:
    """Expected bytes up in a round under Poisson participation."""
    return clients * share * numbers * width


def saved(blocks: int = 6, adapted: int = 2) -> float:
    """Work of a step without a kept prefix over the work with it, in blocks."""
    return (blocks + adapted) / (adapted + adapted)


EXERCISES = (
    Exercise(
        key="14.1",
        question=(
            "10,000 clients, each takes part in a round with chance 1 %, drawn on its own. Each upload is 4,096 "
            "numbers, float32. How many bytes does the server receive in a round, on average?"
        ),
        hint="How many clients take part in a round, on average? How many bytes is one float32?",
        solution="100 clients take part on average, each sends 4,096 · 4 = 16,384 bytes: 1,638,400 bytes, 1.6 MB.",
        answer=bytes_up,
        read=number,
        right=near(bytes_up()),
        why="100 uploads of 16 kB; the other 9,900 clients cost nothing in this round.",
        mistakes=(
            Mistake(409_600, near(409_600.0), "those are numbers; a float32 has four bytes."),
            Mistake(163_840_000, near(163_840_000.0), "that is everybody; a client takes part with chance 1 %."),
            Mistake(13_107_200, near(13_107_200.0), "those are bits; the question asks for bytes."),
            Mistake(819_200, near(819_200.0), "that would be two bytes a number; a float32 has four."),
            Mistake(16_384, near(16_384.0), "that is one upload; about a hundred arrive."),
        ),
        others=("1638400", 1638400.0),
        difficulty=1,
        minutes=3,
    ),
    Exercise(
        key="14.2",
        question=(
            "A model has six equal blocks; only the upper two have adapters. A block costs one unit on the way there "
            "and one on the way back, and nothing comes back below the first adapter. What the four lower blocks make "
            "of every example is kept from earlier steps. How many times less work is a step with it than without?"
        ),
        hint="Count both ways in both cases. Which blocks does the way back pass, with and without what is kept?",
        solution="Without: 6 there + 2 back = 8. With: 2 there + 2 back = 4. So 2 times less.",
        answer=saved,
        read=number,
        right=near(2.0),
        why="the way back was short already; what is kept saves the way there through four of six blocks.",
        mistakes=(
            Mistake(3.0, near(3.0), "6 / 2 is the way there alone, or a way back through all six: it stops after two."),
            Mistake(1.5, near(1.5), "6 / 4 forgets the way back of the first case."),
            Mistake(4.0, near(4.0), "8 / 2 forgets the way back of the second case."),
            Mistake(0.5, near(0.5), "that is the work left over; the question asks how many times less."),
        ),
        others=(2, "2"),
        difficulty=2,
        minutes=4,
    ),
)
