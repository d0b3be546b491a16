"""No wrong answer passes an exercise, and a right one works in the notebook however it is written.

Natural mistakes that no exercise explains by name: none of them passes, and each is answered.
"""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.linalg import norm, svd

import fedlora_course as course
from fedlora_course.exercises import Calls, all_exercises, vary

FUNCTIONS: dict[str, Any] = {
    key: one for key, one in all_exercises().items() if isinstance(one.reader, Calls)
}
ANY_SIZE = ("11.1",)
"""Asked for a direction: size and sign do not count."""


def solution(key):
    return all_exercises()[key].answers[0]


def change_parts(result, change):
    """Changes every number of a result: an array, a number, a list, or parts in a tuple."""
    if isinstance(result, tuple | list):
        return [change_parts(part, change) for part in result]
    return change(np.asarray(result, float))


def clipped_to(rows, C):
    size = np.sqrt((rows**2).sum(axis=tuple(range(1, rows.ndim)), keepdims=True))
    return rows * np.minimum(1, C / np.maximum(size, 1e-12))


# ---- mistakes of any exercise

OF_ANY = {
    "the opposite sign": lambda x: -x,
    "twice as much": lambda x: 2 * x,
    "a tenth more": lambda x: 1.1 * x,
    "squared": np.square,
    "the root": lambda x: np.sqrt(np.abs(x)),
    "nothing": np.zeros_like,
    "one more": lambda x: x + 1,
    "the first numbers": lambda x: x[:-1] if x.ndim else x / 2,
    "an axis more": lambda x: x[None],
    "in another order": lambda x: x[::-1] if x.ndim else x + 2,
    "a thousandth more": lambda x: x + 1e-3 * np.abs(x).max(initial=0),
}
SAME_DIRECTION = ("the opposite sign", "twice as much", "a tenth more")
EXACT_NUMBERS = {"09.3": (4276223, 4276225), "00.1": (-2.0001,), "01.4": (15.999, 16.001)}


def fresh(key, seed=0):
    """Returns an exercise's reader with inputs drawn from a seed."""
    return FUNCTIONS[key].reader.fresh(np.random.default_rng(seed))


def passing(key, answers):
    """Names the answers that an exercise accepts, on whatever is drawn.

    Args: answers: name -> function; each is read, also where its numbers are no numbers.
    """
    accepted = set()
    for seed in range(3):
        reader = fresh(key, seed)
        rights = [reader.read(right) for right in FUNCTIONS[key].answers]
        for name, answer in answers.items():
            result = reader.read(answer)
            if any(reader.same(result, right) for right in rights):
                accepted.add(name)
    return accepted


@pytest.mark.slow
@pytest.mark.parametrize("key", FUNCTIONS)
def test_a_result_that_was_changed_in_any_way_is_wrong(key):
    names = set(OF_ANY) - set(SAME_DIRECTION if key in ANY_SIZE else ())
    changed = {
        name: vary(solution(key), then=partial(change_parts, change=OF_ANY[name])) for name in names
    }
    assert not passing(key, changed)


@pytest.mark.parametrize("key", EXACT_NUMBERS)
def test_a_whole_number_has_wrong_neighbours(key):
    """Fault: 4276223 passed for 4276224, as one of a million is within rounding."""
    assert all_exercises()[key].judge(solution(key))
    assert not any(all_exercises()[key].judge(near) for near in EXACT_NUMBERS[key])


# ---- mistakes of one exercise


def p_value_above_one(m, g, v, epsilon, delta):
    """The p-value of 12.2 without its limit: the term of δ is linear in δ while it is small."""
    luck = solution("12.2")(m, g, v, epsilon, 0.0)
    return luck + 1e6 * (solution("12.2")(m, g, v, epsilon, delta / 1e6) - luck)


def one_turn_wrong(B, A, gradient, combine, eta, gamma, S, T, *, mistake):
    """`take_turns` of 06.1 with one mistake, told of B's rounds and of A's alike."""
    factors = {"B": B, "A": A}
    for t in range(T):
        moving, frozen = ("B", "A") if t % 2 == 0 else ("A", "B")
        own = factors[moving]
        for _ in range(S):
            b, a = (own, A) if moving == "B" else (B, own)
            G = gradient(gamma * b @ a)
            step = G @ A.T if moving == "B" else B.T @ G
            own = own - eta * (1 if mistake == "no gamma" else gamma) * step
            if mistake == "average after each step":
                own = factors[moving] + combine(own - factors[moving], factors[frozen])
        if mistake == "average after each step":
            factors[moving] = own
        else:
            if mistake == "released twice":
                combine(own - factors[moving], factors[frozen])
            factors[moving] = factors[moving] + combine(own - factors[moving], factors[frozen])
        B, A = factors["B"], factors["A"]
    return B, A


TURNS = ("no gamma", "average after each step", "released twice")


def largest_move(step, batch, seed, C, *, changed, distance=None):
    def joint(gaps):
        return math.sqrt(sum((gap**2).sum() for gap in gaps))

    full = step(batch, seed)
    others = [step(changed(batch, i), seed) for i in range(len(batch))]
    gaps = [[full[name] - other[name] for name in full] for other in others]
    return max(map(distance or joint, gaps)) / C


def ffa(B, A, G, gamma, lr, C, sigma, b, xi, *, summed):
    sums = [summed(g, gamma * g @ A.T, gamma * A.T, C) for g in G]
    return B - lr * np.mean([x + sigma * C * z for x, z in zip(sums, xi, strict=True)], 0) / b


WRONG = {
    "05.1": [
        partial(ffa, summed=lambda g, g_B, A, C: g_B.sum(0)),
        vary(solution("05.1"), lr=np.negative),
        lambda B, A, G, gamma, lr, C, sigma, *rest: solution("05.1")(
            B, A, G, gamma, lr, C, sigma / C, *rest
        ),
        lambda B, A, G, *rest: B + len(G) * (solution("05.1")(B, A, G, *rest) - B),
    ],
    "05.2": [
        vary(solution("05.2"), change=np.transpose),
        vary(solution("05.2"), then=np.square),
        lambda change, A: (np.linalg.qr(A.T)[0] ** 2).sum() / change.shape[1],
    ],
    "05.3": [
        lambda lr, C, a, b: (lr * (a / b) ** 2, C * a / b),
        lambda lr, C, a, b: (lr, C * b / a),
        lambda lr, C, a, b: solution("05.3")(lr, C, a, b)[::-1],
        lambda lr, C, a, b: (lr, C),
    ],
    "06.1": [
        *(partial(one_turn_wrong, mistake=mistake) for mistake in TURNS),
        vary(solution("06.1"), eta=np.negative),
        vary(solution("06.1"), T=lambda T: T - 1),
        vary(solution("06.1"), then=lambda factors: factors[::-1]),
    ],
    "06.2": [
        lambda *given: solution("06.2")(*given) / given[-1],
        lambda T, tau, d_out, d_in, *rest: solution("06.2")(T, tau, d_in, d_out, *rest),
        lambda T, tau, o, i, r, gamma: solution("06.2")(T, tau, o, i * r, r, gamma),
    ],
    "07.2": [
        lambda dB, A, C, sigma, xi: solution("07.2")(dB, A, C, sigma / C, xi),
        lambda dB, *rest: len(dB) * solution("07.2")(dB, *rest),
        lambda dB, *rest: solution("07.2")(dB.sum(0)[None], *rest) / len(dB),
    ],
    "07.1": [
        vary(solution("07.1"), then=lambda loss: 2 * loss),
        vary(solution("07.1"), tau=np.sqrt),
        vary(solution("07.1"), kappa=np.negative),
        lambda tau, eta, kappa: (2 * solution("07.1")(tau, eta, kappa) / kappa) ** 0.5,
    ],
    "08.1": [
        lambda g_B, g_A: solution("08.1")(*solution("08.1")(g_B, g_A)),
        vary(solution("08.1"), then=lambda pair: [16 * x for x in pair]),
        vary(solution("08.1"), then=lambda pair: pair[::-1]),
        lambda g_B, g_A: (solution("08.1")(g_B, g_A)[0], g_A),
    ],
    "08.3": [
        vary(solution("08.3"), energy=np.sqrt),
        vary(solution("08.3"), energy=lambda energy: energy[::-1]),
        vary(solution("08.3"), then=np.sqrt),
        vary(solution("08.3"), then=lambda worth: 1 / worth),
    ],
    "08.4": [
        vary(solution("08.4"), lr_A=lambda lr: -lr, lr_B=lambda lr: -lr),
        vary(solution("08.4"), C=math.inf),
        vary(solution("08.4"), steps=lambda steps: 2 * steps),
        lambda B, A, g, lr_B, lr_A, *rest: solution("08.4")(B, A, g, lr_A, lr_B, *rest),
    ],
    "14.1": [
        vary(solution("14.1"), reach=0.9677083),
        vary(solution("14.1"), then=np.flip),
        vary(solution("14.1"), then=lambda code: code[code != 0]),
    ],
    "14.2": [
        lambda x, levels, block: solution("14.2")(x, levels * x.std(), block),
        lambda x, levels, block: levels[np.abs(x[:, None] - levels).argmin(1)],
        vary(solution("14.2"), x=np.abs),
    ],
    "14.4": [
        lambda psi, sent, uploads, w, eta: eta * w @ uploads,
        lambda psi, sent, uploads, w, eta: (1 - eta) * psi + eta * w @ uploads,
        vary(solution("14.4"), eta=lambda eta: -eta),
    ],
    "14.5": [
        lambda copies, m: copies[-m],
        lambda copies, m: copies[-m:].mean(),
        lambda copies, m: copies[-m:].sum(0),
    ],
    "09.1": [
        lambda B, A: (B.sum(0), A.sum(0), (B @ A).sum(0) - B.sum(0) @ A.sum(0)),
        lambda B, A: (
            *solution("09.1")(B, A)[:2],
            len(B) / (len(B) - 1) * solution("09.1")(B, A)[2],
        ),
    ],
    "09.2": [
        lambda B, A: norm(svd((B @ A).mean(0), compute_uv=False)[A.shape[1] :]),
    ],
    "09.4": [
        lambda z_B, z_A, tau: (
            solution("09.4")(z_B, z_A, tau)[0],
            len(z_B) * solution("09.4")(z_B, z_A, tau)[0],
        ),
    ],
    "11.1": [
        lambda G: svd(G)[2][1],
        lambda G: G[norm(G, axis=1).argmin()],
    ],
    "11.2": [
        lambda G, candidates, n: solution("11.2")(G, candidates, n - 1),
        lambda G, candidates, n: norm(candidates @ svd(G)[2][:n].T, axis=1),
    ],
    "11.4": [
        lambda G: np.abs(G).sum(1).argmin(),
        lambda G: G[:, 0].argmax(),
    ],
    "12.1": [
        vary(solution("12.1"), threshold=lambda threshold: threshold - 1e-9),
        lambda inside, outside, t, *rest: solution("12.1")(outside, inside, t, *rest),
        vary(solution("12.1"), delta=0.0),
    ],
    "12.2": [
        p_value_above_one,
        vary(solution("12.2"), epsilon=np.negative),
        lambda m, g, v, epsilon, delta: solution("12.2")(m, m, v, epsilon, delta),
    ],
    "15.1": [
        lambda sites, labels: np.unique(labels, return_inverse=True)[1],
        lambda sites, labels: solution("15.1")(sites, labels)[::-1],
    ],
    "15.2": [
        vary(solution("15.2"), work=lambda work: work - 1),
        vary(solution("15.2"), K=1),
    ],
    "15.4": [
        lambda x, epsilon, xi: x.sum(1) + len(x) / epsilon * xi,
        lambda x, epsilon, xi: x.mean(1) + epsilon / len(x) / x.shape[1] * xi,
    ],
    "16.1": [
        partial(largest_move, changed=lambda batch, i: [*batch, batch[i]]),
        partial(largest_move, changed=lambda batch, i: batch[:i] + [0 * batch[i]] + batch[i + 1 :]),
        partial(
            largest_move,
            changed=lambda batch, i: batch[:i] + batch[i + 1 :],
            distance=lambda gaps: sum(map(norm, gaps)),
        ),
    ],
    "16.3": [
        lambda rows, C, sigma, expected, z: (clipped_to(rows, C).sum(0) + sigma * z) / expected,
        lambda rows, C, sigma, expected, z: (clipped_to(rows, C) + sigma * C * z).sum(0) / expected,
        lambda rows, C, sigma, expected, z: (
            clipped_to(rows / expected, C).sum(0) + sigma * C * z / expected
        ),
    ],
    "16.5": [
        lambda fit, examples, seed: solution("16.5")(fit, examples[:-1], seed),
        vary(solution("16.5"), seed=lambda seed: seed + 1),
    ],
}


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("key", WRONG)
def test_no_natural_mistake_passes_and_each_is_told_something_of_its_own(key):
    """Fault: 85 of 115 such mistakes got one and the same line, that they were not known."""
    for mistake in WRONG[key]:
        verdict = all_exercises()[key].judge(mistake, np.random.default_rng(0))
        assert not verdict and len(verdict.message) > 30


def written_answers():
    """Answers of natural_mistakes.txt: key -> (how what is told begins, the answer's code)."""
    text = Path(__file__).with_name("natural_mistakes.txt").read_text(encoding="utf-8")
    answers: dict[str, list[tuple[str, str]]] = {}
    for block in text.split("### ")[1:]:
        head, code = block.split("\n", 1)
        key, told = head.split(" | ")
        answers.setdefault(key, []).append((told, code))
    return answers


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("key", written_answers())
def test_an_answer_that_a_student_wrote_is_told_what_is_wrong(key):
    """Fault: 60 of 270 got a failing call only, and one that uses masks it must not know passed."""
    for told, code in written_answers()[key]:
        names: dict[str, Any] = {}
        exec(code, names)
        *_, answer = (value for name, value in names.items() if not name.startswith("__"))
        verdict = repr(all_exercises()[key].judge(answer, np.random.default_rng(0)))
        as_told = told in verdict and verdict.startswith("Right") == (told == "Right")
        assert as_told, f"{verdict}\n\n{code}"


# ---- what is no answer at all

NUMBERS = 3.0, np.array(2.0), [3.0]
NO_NUMBERS = None, "many", {"a": 1.0}, [], np.zeros(0), [None], [[], [1.0]], [[], {}], math.nan
TOLD = "should come out of your function, not ", "your function returns nothing", "is a NaN"


@pytest.mark.parametrize("key", FUNCTIONS)
def test_what_is_no_result_is_refused_in_a_line(key):
    """Fault: a number in place of several results was answered by a traceback."""
    for returned in (*NUMBERS, *NO_NUMBERS):
        generator = np.random.default_rng(0)
        verdict = all_exercises()[key].judge(lambda *given, r=returned: r, generator)
        assert not verdict and len(verdict.message) > 30
        if not any(returned is number for number in NUMBERS):
            assert any(words in verdict.message for words in TOLD), f"{returned}: {verdict}"


def test_a_number_in_place_of_several_results_is_told_what_should_come_out():
    told = all_exercises()["02.1"].judge(lambda B, A, n: (B @ A).sum()).message
    assert "should come out of your function, not a number where B = [[[1.]]" in told


@pytest.mark.parametrize("key", FUNCTIONS)
def test_a_function_that_stops_is_told_its_own_error(key):
    """Fault: 10.1 told of a zip() in the course's code."""

    def stops(*given):
        raise NameError("name")

    told = all_exercises()[key].judge(stops).message
    words = FUNCTIONS[key].reader.words
    assert told.startswith(f"your function of {words} stops with NameError in its line 2: name,")


@pytest.mark.parametrize(
    ("key", "places", "order"),
    [
        ("02.1", (1, 0, 2), "another"),
        ("16.5", (1, 2, 0), "another"),
        ("16.5", (2, 1, 0), "the opp"),
    ],
)
def test_right_results_in_another_order_are_told_so(key, places, order):
    """Fault: 3 parts should come out, not 3 parts."""
    moved = vary(solution(key), then=lambda parts: [parts[i] for i in places])
    told = all_exercises()[key].judge(moved).message
    assert told.startswith(f"your results are right, but stand in {order}")


# ---- right answers, written otherwise


def styled(change):
    """Changes the numbers of a result, and keeps its parts together."""

    def change_all(result):
        if isinstance(result, tuple | list):
            return [change_all(part) for part in result]
        return change(np.asarray(result))

    return change_all


STYLES = {
    "PyTorch": styled(lambda x: torch.tensor(x, requires_grad=x.dtype.kind == "f")),
    "single precision": styled(lambda x: torch.tensor(x, dtype=torch.float32)),
    "NumPy's single precision": styled(np.float32),
    "lists": styled(np.ndarray.tolist),
    "fractional classes": styled(lambda x: x.astype(float)),
}
LARGE_WHOLE_NUMBERS = ("13.2", "13.3")


def kinds(result):
    """Collects how numbers are held, "f8" or "i8"; a tensor is not NumPy's."""
    if isinstance(result, tuple | list):
        return {kind for part in result for kind in kinds(part)}
    assert not torch.is_tensor(result)
    return {np.asarray(result).dtype.str[1:]}


@pytest.mark.slow
@pytest.mark.parametrize("key", FUNCTIONS)
def test_right_answers_in_another_style_pass_and_are_used(key):
    """Fault: an answer in PyTorch passed, and the cell that used it stopped."""
    reader = fresh(key)
    right = solution(key)
    for style, change in STYLES.items():
        if key in LARGE_WHOLE_NUMBERS and "single" in style:
            continue
        used = course.exercises.use(key, lambda *given, c=change: c(right(*given)))
        assert used is not right, f"{style}: refused"
        with np.errstate(all="ignore"):  # an exercise asks for the move of what is no number
            results = [used(*copy.deepcopy(case)) for case in reader.cases]
            expected = kinds([right(*copy.deepcopy(case)) for case in reader.cases])
        assert kinds(results) == ({"f8"} if "f8" in expected else expected), style


def test_a_function_is_used_with_the_types_that_the_check_gave_it():
    """Single precision, a whole number for a fraction, other names: all met in notebooks."""

    def by_torch(gradient, a, scale, eta):
        gradient, a = torch.tensor(gradient), torch.tensor(a)
        gradient *= scale  # changes its argument
        return -eta * scale * gradient @ a.T @ a

    G = np.ones((4, 5), np.float32)
    A = np.arange(10.0).reshape(2, 5)
    used = course.exercises.use("01.3", by_torch)
    move = used(G, A, gamma=3, lr=1)
    assert type(move) is np.ndarray and move.dtype == float
    assert move == pytest.approx(solution("01.3")(G, A, 3, 1)) and (G == 1).all()
    assert used(torch.tensor(G), A, 3, 1) == pytest.approx(move)


def test_a_function_among_the_arguments_takes_tensors():
    def by_torch(B, A, gradient, combine, eta, gamma, S, T):
        B, A = torch.tensor(B), torch.tensor(A)
        for t in range(T):
            b, a = B, A
            for _ in range(S):
                G = torch.tensor(gradient(gamma * b @ a))
                b, a = (
                    (b - eta * gamma * G @ a.T, a) if t % 2 == 0 else (b, a - eta * gamma * b.T @ G)
                )
            B = B + torch.tensor(combine(b - B, A)) if t % 2 == 0 else B
            A = A + torch.tensor(combine(a - A, B)) if t % 2 else A
        return B, A

    assert FUNCTIONS["06.1"].judge(by_torch)
