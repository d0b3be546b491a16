"""The dial of notebook 02: clients as points, and what averaging their factors misses."""

import numpy as np
from jaxtyping import Float, Num

from fedlora_course.lesson_02.theory import deviation_matrix
from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, axis, bars, dots, draw_scene, line, panel, text
from fedlora_lab.plots.style import Picture

LOW = -0.3
HIGH = 2.8
CLIENTS = 6
ANGLES = 2 * np.pi * np.arange(CLIENTS) / CLIENTS + 0.4
OfClients = Float[np.ndarray, " clients"]


def client_cloud(B: Num[np.ndarray, " clients"], A: Num[np.ndarray, " clients"]) -> Picture:
    """Draws clients as points (B, A), and what each of them adds to the deviation.

    Args: B, A: one number a client.
    """
    shares = np.full(len(B), 1 / len(B))
    return draw_scene(_cloud(np.asarray(B, float), np.asarray(A, float), shares))


def _cloud(
    B: OfClients,
    A: OfClients,
    p: OfClients,
) -> Scene:
    mean_B = float(p @ B)
    mean_A = float(p @ A)
    product = float(p @ (B * A))
    server = _number(mean_B * mean_A)
    average = _number(product)
    D = float(deviation_matrix(B.reshape(-1, 1, 1), A.reshape(-1, 1, 1), p)[0, 0])
    parts = (-p * (B - mean_B) * (A - mean_A)).round(3)
    places = np.arange(1, len(B) + 1)
    sums = [*places.tolist(), len(B) + 1.5]
    names = [*map(str, places), "D"]
    # A hyperbola holds all pairs with one product.
    at = np.geomspace(0.1, HIGH, 40)
    panels = [
        panel(
            "One dot per client; large: their averages",
            axis("a client's B", LOW, HIGH),
            axis("a client's A", LOW, HIGH),
            line([LOW, HIGH], 0, "edge", width=1),
            line(0, [LOW, HIGH], "edge", width=1),
            line(at, product / at, "green", dash="6 4"),
            line(at, mean_B * mean_A / at, "ink"),
            dots(B, A, "blue", 6),
            dots(mean_B, mean_A, "ink", 9),
            *(
                text(b, a, str(k), "blue", dx=9, dy=-5)
                for k, b, a in zip(places, B, A, strict=True)
            ),
            text(HIGH, 2.62, f"— server: B̄·Ā = {server}", anchor="end", dx=-4),
            text(HIGH, 2.4, f"– – mean of products = {average}", "green", anchor="end", dx=-4),
            wide=True,
            height=300,
        ),
        panel(
            f"D = {server} − {average} = {_number(D)}",
            axis("what each client adds to D", 0.3, len(B) + 2.2, ticks=sums, names=names),
            axis("", -0.45, 0.45),
            bars(places - 0.36, 0, places + 0.36, parts, "blue"),
            bars(sums[-1] - 0.36, 0, sums[-1] + 0.36, D, "red"),
            line([0, len(B) + 3], 0, "edge", width=1),
            height=300,
        ),
    ]
    held = f"The server holds {server} where the clients' products average {average}. "
    return panels, held + _finding(B, A, D)


def _number(value: float) -> str:
    """Formats a number with two digits, a true minus sign, and 0 where all digits are zero."""
    return f"{value:.2f}".replace("-", "−") if abs(value) >= 5e-3 else "0"


def _finding(B: np.ndarray, A: np.ndarray, D: float) -> str:
    if np.ptp(A) < 1e-9:
        return "All clients hold the same A, so nothing is lost wherever B goes."
    if np.ptp(B) < 1e-9:
        return "All clients hold the same B, so nothing is lost wherever A goes."
    if abs(D) < 5e-3:
        return "B and A do not go together over these clients: nothing is lost, though both differ."
    size, other = ("little", "large") if D < 0 else ("much", "small")
    return f"That is too {size}: clients with a large B tend to have a {other} A."


def deviation_explorer() -> Dial:
    """Makes a dial for six clients as points (B, A): D, and each client's part of it."""

    def scene(together: float, spread: float, weight: float) -> Scene:
        B = 1 + 0.9 * np.cos(ANGLES)
        A = 1 + spread * (together * np.cos(ANGLES) + (1 - together**2) ** 0.5 * np.sin(ANGLES))
        p = np.full(CLIENTS, (1 - weight) / (CLIENTS - 1))
        p[0] = weight
        return _cloud(B, A, p)

    return Dial(
        "02/deviation_explorer",
        scene,
        together=[-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1],
        spread=[0, 0.2, 0.4, 0.6, 0.8],
        weight=[round(1 / CLIENTS, 3), 0.4, 0.8],
    )
