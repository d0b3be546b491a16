"""Right and wrong answers to exercise 07.1: a step of b, then a step of a, on (b a - 1)^2 / 2."""

from fedlora_lab.course.exercise import Calls
from fedlora_lab.theory.alternation import two_number_descent

CALLS = {"07.1": Calls("b, a and lr", (0.7, 1.9, 0.3), shape=(2,), within=1e-9)}


def turn(b, a, lr):
    b = b - lr * (b * a - 1) * a
    return b, a - lr * (b * a - 1) * b


def by_theory(b, a, lr):
    return two_number_descent((b, a), lr, 2, turns=True)[-1]


def as_a_list(b, a, lr):
    return list(turn(b, a, lr))


def at_once(b, a, lr):
    error = b * a - 1
    return b - lr * error * a, a - lr * error * b


def stale_error(b, a, lr):
    error = b * a - 1
    b = b - lr * error * a
    return b, a - lr * error * b


def a_first(b, a, lr):
    a = a - lr * (b * a - 1) * b
    return b - lr * (b * a - 1) * a, a


def uphill(b, a, lr):
    return turn(b, a, -lr)


def only_b(b, a, lr):
    return turn(b, a, lr)[0], a


def own_factor(b, a, lr):
    b = b - lr * (b * a - 1) * b
    return b, a - lr * (b * a - 1) * a
