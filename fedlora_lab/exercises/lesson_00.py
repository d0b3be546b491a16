"""Exercises of notebook 00: why is federated LoRA under privacy hard?"""

from fedlora_lab.exercises.exercise import Exercise, Mistake, near, number


def deviation() -> float:
    """Product of the averages minus average of the products, for B = 1, 3 and A = 2, 6."""
    b, a = (1.0, 3.0), (2.0, 6.0)
    return sum(b) / 2 * sum(a) / 2 - sum(x * y for x, y in zip(b, a, strict=True)) / 2


EXERCISES = (
    Exercise(
        key="00.1",
        question=(
            "Rank 1, one input, one output: every factor is a single number. Client 1 holds B = 1 and A = 2, client 2 "
            "holds B = 3 and A = 6. The server averages the B's, averages the A's, and multiplies. By how much does "
            "its product miss the mean of the two clients' products? Give D = server's product − mean of the products."
        ),
        hint="Write down three numbers: the mean of the B's, the mean of the A's, the mean of B·A over the clients.",
        solution=(
            "The server holds ((1 + 3) / 2) · ((2 + 6) / 2) = 2 · 4 = 8. The clients' products are 2 and 18, their "
            "mean is 10. D = 8 − 10 = −2, which is also −Σ p (B − mean B)(A − mean A) = −½ · [(−1)(−2) + (1)(2)]."
        ),
        answer=deviation,
        read=number,
        right=near(-2.0),
        why="the server holds 8 where the clients' products average 10; freezing either factor would make D zero.",
        mistakes=(
            Mistake(8.0, near(8.0), "8 is what the server holds; subtract what it should hold."),
            Mistake(
                10.0,
                near(10.0),
                "10 is the mean of the clients' products; the question is how far the server is from it.",
            ),
            Mistake(2.0, near(2.0), "the size is right, the sign is not: D is the server's product minus the mean."),
            Mistake(-12.0, near(-12.0), "you summed the clients' products; take their mean."),
            Mistake(0.0, near(0.0), "the two only agree when one factor is common to all clients; here both differ."),
            Mistake(-0.2, near(-0.2), "that is D relative to the mean product; the question asks for D itself."),
        ),
        others=(-2, "-2", -2 + 1e-9),
        difficulty=1,
        minutes=3,
    ),
)
