"""Dials in Chromium: formulas, controls, names, contrast; with a kernel, busy, and without."""

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from lab import open_notebook
from scipy.fft import dct, idct

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.audit import bounds
from fedlora_lab.audit.bounds import gaussian_noise_multiplier
from fedlora_lab.course.widgets.dial import dial_module, page_script
from fedlora_lab.methods.quantization import normal_levels

SETUP = """
import time
import numpy as np
import fedlora_lab as fl
rng = np.random.default_rng(0)
rows = rng.standard_normal((600, 50)) * np.exp(1.5 * rng.standard_normal((600, 1))) / 7 + 0.02
change = np.diag(2.0 ** (1 - np.arange(64)))
first = {"moves": "B", "rests": "A", "stretches": [0.7, 0.5], "angle": 30.0}
then = {"moves": "A", "rests": "B", "stretches": [1.5, 0.4], "angle": 80.0}
first |= {"from": [0, 0.7], "to": [0.5, 0.7]}
then |= {"from": [0.5, 0.7], "to": [0.5, 1.1]}
"""
# Name -> call.
DIALS = {
    "deviation": "fl.course.lesson(2).deviation_explorer()",
    "amplifier": "fl.course.lesson(4).noise_explorer()",
    "noise and signal": "fl.course.lesson(4).noise_signal()",
    "film": "fl.course.lesson(4).decision_film()",
    "two worlds": "fl.course.lesson(3).two_worlds()",
    "clip": "fl.course.lesson(3).clip_explorer(rows)",
    "planner": "fl.course.lesson(3).privacy_planner()",
    "low rank": "fl.course.lesson(1).low_rank_explorer(change)",
    "quantiser": "fl.course.lesson(8).quantiser_explorer(rows)",
    "attack": "fl.course.lesson(11).attack_explorer()",
    "audit": "fl.course.lesson(12).audit_explorer()",
    "trust": "fl.course.lesson(13).trust_explorer()",
    "schedule": "fl.course.lesson(6).schedule_explorer()",
    "regulator": "fl.course.lesson(6).regulator_explorer()",
    "rounds": "fl.course.lesson(6).rounds_explorer([first, then], 0.75)",
    "filter": "fl.course.lesson(7).filter_explorer()",
}


ROOM: dict[str, Any] = {}
exec(SETUP, ROOM)


def dial(name: str) -> Any:
    """A dial of `DIALS`, made in this process."""
    return eval(DIALS[name], ROOM)


# Formulas


def deviation(points, weight):
    p = np.array([weight] + [(1 - weight) / (len(points) - 1)] * (len(points) - 1))
    b, a = np.array(points).T.reshape(2, -1, 1, 1)
    return theory.deviation_matrix(b, a, p).item()


def noise_terms(std, rank, alpha, width, size_B):
    A = np.full((rank, width), (3 * width) ** -0.5)
    return list(theory.noise_terms(size_B * A.T, A, std, std, alpha / rank))


def amplification(v):
    step = v["unit"] == "example"
    tau = v["sigma"] * v["C"] / v["clients"]
    if step:
        tau = v["lr"] * v["sigma"] * v["C"] / v["batch"] / math.sqrt(v["clients"])
    n = v["rounds"] * (v["steps"] if step else 1)
    sizes = v["width"], v["rank"], v["width"]
    terms = theory.accumulated_noise_terms(*sizes, tau, tau, n, n, 1.0, v["scale"])
    most = n * v["C"] * (v["lr"] if step else 1) * v["scale"] / math.sqrt(3)
    rho = theory.amplification(tau, n, v["width"], v["scale"])
    return [tau, n, rho, math.sqrt(terms.linear_B) / most, math.sqrt(terms.quadratic) / most]


def renyi_epsilon(q, sigma, releases, delta):
    orders = np.arange(2, 65)
    rdp = releases * theory.sampled_gaussian_rdp(orders, q, sigma)
    return theory.rdp_to_epsilon(orders, rdp, delta)[0]


def plan(rng):
    draws: Any = {k: float(rng.uniform(0.1, 3)) for k in ("sigma", "C", "lr", "scale")}
    sizes = ("batch", "clients", "rounds", "steps", "width", "rank")
    whole = {k: int(rng.integers(1, 50)) for k in sizes}
    return {**draws, **whole, "unit": str(rng.choice(["client", "example"]))}


RHO = (
    "v => { const a = m.amplification(v), e = m.noiseToSignal(v, 1);"
    " return [a.tau, a.releases, a.rho, e.linear, e.quadratic]; }"
)

KINDS = ("local", "secagg", "central")
TRUST = "(s, colluders, clients) => ['local', 'secagg'].flatMap(kind => [m.noiseOnMean(kind, s, "
TRUST += "clients), ...m.faced(kind, s, clients, colluders)]).concat(s / clients)"


def sorted_pair(rng):
    return sorted(rng.choice(np.arange(1, 60), 2, replace=False).tolist())


def trust(sigma, colluders, clients):
    def spent(multiplier):
        return theory.gdp_epsilon(1 / multiplier, 1e-5)

    mean = [theory.trust_level(kind, sigma, 1.0, clients).mean for kind in KINDS]
    left = theory.surviving_multiplier(sigma, clients, clients - colluders)
    one, crowd = spent(sigma), spent(sigma * math.sqrt(clients))
    return [mean[0], crowd, one, one, mean[1], one, one, spent(left), mean[2]]


COUNTED = "t => (c => [c.A, c.B, c.sent, c.both.length])(m.counted(m.parse(t)))"


def schedule(rng):
    rounds = (rng.choice(["A", "B", "AB"], rng.integers(1, 4)) for _ in range(rng.integers(1, 4)))
    return " | ".join(" ".join(words) for words in rounds)


def counted(text):
    row = fl.Method("typed", "", train=fl.Cycle(tuple(part.strip() for part in text.split("|"))))
    words = [row.sides_at_step(t, s) for t in range(6) for s in range(4)]
    moved = [row.sides_in_round(t, 4) for t in range(6)]
    shares = [sum(side in word for word in words) / 24 for side in "AB"]
    return [*shares, sum(map(len, moved)) / 12, sum(len(sides) == 2 for sides in moved)]


# Lesson -> JavaScript of one argument list, the same in Python, arguments from a generator.
Formula = tuple[int, str, Any, Any]
FORMULAS: dict[str, Formula] = {
    "cdf": (2, "m.cdf", lambda x: float(np.exp(_log_ndtr(x))), lambda g: [g.normal() * 6]),
    "log cdf": (2, "m.logCdf", lambda x: float(_log_ndtr(x)), lambda g: [g.normal() * 15]),
    "quantile": (2, "m.quantile", lambda p: float(_ndtri(p)), lambda g: [10 ** -g.uniform(0, 14)]),
    "delta": (
        2,
        "m.gdpDelta",
        theory.gdp_delta,
        lambda g: [10 ** g.uniform(-1, 1), g.uniform(0, 12)],
    ),
    "epsilon": (
        2,
        "m.gdpEpsilon",
        theory.gdp_epsilon,
        lambda g: [10 ** g.uniform(-2, 1), 10 ** -g.uniform(1, 9)],
    ),
    "deviation": (
        2,
        "(p, w) => m.deviation(p, w).D",
        deviation,
        lambda g: [g.normal(size=(6, 2)).tolist(), g.uniform()],
    ),
    "noise terms": (
        4,
        "(std, rank, alpha, width, size_B) => m.noiseTerms({std, rank, alpha, width, size_B})",
        noise_terms,
        lambda g: [g.uniform(), *g.integers(1, 60, 3).tolist(), g.uniform()],
    ),
    "membership bound": (
        3,
        "m.membershipBound",
        lambda f, e, d: theory.membership_bound(np.array([f]), e, d).item(),
        lambda g: [g.uniform(), g.uniform(0, 9), g.uniform()],
    ),
    "Rényi": (
        3,
        "m.renyi",
        lambda a, q, s: theory.sampled_gaussian_rdp(np.array([a]), q, s).item(),
        lambda g: [int(g.integers(2, 65)), g.uniform(0.001, 1), g.uniform(0.5, 6)],
    ),
    "ε of Rényi": (
        3,
        "(q, s, n, d) => m.renyiEpsilon(m.renyiOrders(q, s), n, d)",
        renyi_epsilon,
        lambda g: [g.uniform(0.001, 1), g.uniform(0.5, 6), int(g.integers(1, 999)), 1e-4],
    ),
    "reachable error": (
        1,
        "m.reachable",
        lambda values: theory.reachable_error(np.array(values)).tolist(),
        lambda g: [sorted(g.uniform(size=8).tolist(), reverse=True)],
    ),
    "levels": (
        8,
        "m.levels",
        lambda width: list(normal_levels(width)),
        lambda g: [int(g.integers(2, 9))],
    ),
    "overlap": (
        11,
        "m.overlap",
        theory.gradient_overlap,
        lambda g: [10 ** g.uniform(-2, 0), int(g.integers(1, 33)), 64, int(g.integers(1, 100))],
    ),
    "vanishing noise": (
        11,
        "m.vanishing",
        theory.vanishing_noise,
        lambda g: [int(g.integers(1, 33)), 64, int(g.integers(1, 100))],
    ),
    "p-value of an audit": (
        12,
        "m.pValue",
        bounds.one_run_p_value,
        lambda g: [300, 150, int(g.integers(60, 151)), g.uniform(0, 4), 10 ** -g.uniform(3, 6)],
    ),
    "bound of an audit": (
        12,
        "(m1, r, v) => Number(m.lowerBound(m1, r, v, 1e-5, 0.02).toFixed(4))",
        lambda m, r, v: round(bounds.one_run_lower_bound(m, r, v, 1e-5, 0.02), 4),
        lambda g: [300, 100, int(g.integers(50, 101))],
    ),
    "σ of ε": (
        13,
        "e => m.gdpSigma(e, 1e-5)",
        lambda e: gaussian_noise_multiplier(float(e)),
        lambda g: [g.uniform(0.2, 20)],
    ),
    "trust": (13, TRUST, trust, lambda g: [g.uniform(0.3, 9), *sorted_pair(g)]),
    "schedule": (6, COUNTED, counted, lambda g: [schedule(g)]),
    "separation": (
        6,
        "(a, b, s) => m.separation(a, b, s, 'factor')",
        lambda a, b, s: 1 / theory.regulated_multiplier(np.diag([a, b]), s),
        lambda g: g.uniform(0.3, 3, 3).tolist(),
    ),
    "cosine transform": (
        7,
        "row => m.dct(row).concat(m.idct(row))",
        lambda row: [*dct(row, norm="ortho"), *idct(row, norm="ortho")],
        lambda g: [g.normal(size=16).tolist()],
    ),
    "filter": (
        7,
        "(e, taps) => [...m.response(taps, e.length), m.filteredEnergy(e, taps)]",
        lambda e, t: [*theory.filter_response(t, len(e)), theory.filtered_energy(np.array(e), t)],
        lambda g: [g.uniform(size=32).tolist(), int(g.choice([1, 3, 5, 9]))],
    ),
    "noise and signal": (4, RHO, amplification, lambda g: [plan(g)]),
}


def _log_ndtr(x: float) -> Any:
    from scipy.special import log_ndtr

    return log_ndtr(x)


def _ndtri(p: float) -> Any:
    from scipy.special import ndtri

    return ndtri(p)


LOAD = """async code => {
    const blob = new Blob([code], {type: 'text/javascript'});
    window.m = await import(URL.createObjectURL(blob));
}"""


def test_formulas(browser):
    """In JavaScript what `theory` says, on random arguments."""
    page, rng = browser.new_page(), np.random.default_rng(0)
    page.goto("about:blank")
    for lesson in sorted({lesson for lesson, *_ in FORMULAS.values()}):
        page.evaluate(LOAD, dial_module(f"lesson_{lesson:02}"))
        for name, (where, code, expected, draw) in FORMULAS.items():
            if where != lesson:
                continue
            cases = [draw(rng) for _ in range(20)]
            found = page.evaluate(f"cases => cases.map(given => ({code})(...given))", cases)
            wanted = [expected(*case) for case in cases]
            assert found == [pytest.approx(w, rel=1e-9, abs=1e-15) for w in wanted], name
    page.close()


@pytest.mark.parametrize(
    ("sigma", "q", "releases"), [(2.0, 16 / 120, 100), (1.1, 0.1, 200), (0.7, 0.02, 1), (3, 1, 7)]
)
def test_the_composed_loss(browser, sigma, q, releases):
    """Is the ledger's, which rounds up by at most 0.01."""
    page, rates = browser.new_page(), [1e-3, 0.01, 0.1, 0.5]
    page.goto("about:blank")
    page.evaluate(LOAD, dial_module("lesson_03"))
    code = "([s, q, n]) => { const one = m.privacyLoss(s, q, n); return [one.epsilon(1e-4), "
    code += f"...{rates}.map(one.found), one.delta(0)]; }}"
    found = page.evaluate(code, [sigma, q, releases])
    privacy = fl.Privacy(noise_multiplier=sigma, sample_rate=q, delta=1e-4)
    ledger = privacy.ledger(releases)
    wanted = [ledger.epsilon(), *ledger.tradeoff(rates), ledger.advantage()]
    assert found == pytest.approx(wanted, rel=2e-3, abs=0.01)
    page.close()


# On a page without a kernel


def static(browser, tmp_path, names=tuple(DIALS), theme="light", width=1000):
    """Opens a file that holds these dials as a page of the site does."""
    cells = [dial(name)._repr_mimebundle_()[0]["text/html"] for name in names]
    text = f"<!doctype html><html data-theme={theme}><meta charset=utf-8>{''.join(cells)}"
    path = tmp_path / "dials.html"
    path.write_text(f"{text}<script>{page_script()}</script>", encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda r: r.url.startswith("http") and page.errors.append(r.url))
    page.goto(path.as_uri())
    return page


def look(output: Any) -> tuple[str, str]:
    """The picture of a dial, and its sentence."""
    return output.locator(".panels").inner_html(), output.locator(".say").inner_text()


def turn(output: Any) -> None:
    """Turns the first control by the keyboard as far as it goes, or picks another option."""
    knob = output.locator(".knob input, .knob select").first
    if knob.evaluate("e => e.tagName") == "SELECT":
        last = knob.evaluate("e => e.selectedIndex < e.length - 1 ? e.length - 1 : 0")
        knob.select_option(index=last)
        return
    knob.focus()
    before = knob.input_value()
    knob.press("End")
    if knob.input_value() == before:
        knob.press("Home")


def test_dials_turn_on_a_page_without_a_kernel(browser, tmp_path):
    page = static(browser, tmp_path)
    outputs = page.locator(".fl-dial").all()
    assert len(outputs) == len(DIALS)
    for name, output in zip(DIALS, outputs, strict=True):
        first = look(output)
        turn(output)
        assert all(now != was for now, was in zip(look(output), first, strict=True)), name
        seen = {look(output)}
        for preset in output.locator("[data-preset]").all()[:-1]:
            preset.click()
            assert preset.get_attribute("aria-pressed") == "true", name
            assert "NaN" not in "".join(look(output)) and "undefined" not in "".join(look(output))
            seen.add(look(output))
        assert len(seen) > 2, name
        output.get_by_role("button", name="Reset").click()
        assert look(output) == first, name
    assert page.errors == []
    page.close()


def test_a_descent_says_why_it_does_not_arrive(browser, tmp_path):
    """A rate at which the error rises on the way was called slow."""
    page = static(browser, tmp_path, ["low rank"])
    output = page.locator(".fl-dial")
    assert "steps this large overshoot" in look(output)[1]
    for preset, words in (("small α: slow", "makes it slow"), ("large α", "diverges")):
        output.locator("[data-preset]").filter(has_text=preset).click()
        assert words in look(output)[1]
    page.close()


def test_a_dot_is_dragged_by_pointer_and_by_keys(browser, tmp_path):
    page = static(browser, tmp_path, ["deviation"])
    dot, first = page.locator("[data-handle='2']"), look(page)
    box = dot.bounding_box()
    page.mouse.move(box["x"] + 9, box["y"] + 9)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 9, steps=4)
    page.mouse.up()
    dragged = look(page)
    assert dragged[1] != first[1]
    dot.focus()
    dot.press("ArrowUp")
    dot.press("ArrowUp")  # the dot that is drawn again keeps the focus
    assert look(page)[1] != dragged[1]
    page.close()


def test_a_schedule_is_typed(browser, tmp_path):
    """What is typed goes before what is picked; what is no schedule is said in one line."""
    page = static(browser, tmp_path, ["schedule"])
    first, line = look(page)[0], page.get_by_label("or type one")
    line.fill(" B|B A ")
    assert "B moves in 75 % of the steps" in look(page)[1]
    assert "missed in rounds 2, 4, 6, where both move" in look(page)[1]
    shown = look(page)[0]
    line.fill("B | Q")
    assert page.get_by_role("alert").inner_text().startswith("“Q” is no word here: A, B or AB")
    assert look(page)[0] == shown != first
    page.get_by_role("button", name="Reset").click()
    assert look(page)[0] == first and page.errors == []
    page.close()


def test_a_film_plays_and_pauses(browser, tmp_path):
    """From the first round on when it stands at the last; it shows the stored probabilities."""
    page = static(browser, tmp_path, ["film"])
    one = fl.course.lesson(4).decisions_film()["scans"][0]
    share = f"the {one['truth']} a probability of {100 * one['noisy'][20][one['truth']]:.0f} %"
    assert look(page)[1].startswith("Round 20 of 20") and share in look(page)[1]
    page.get_by_role("button", name="Play").click()
    page.locator(".say").filter(has_text=re.compile("Round [23] of 20")).wait_for()
    page.get_by_role("button", name="Pause").click()
    stands = look(page)
    page.wait_for_timeout(900)
    assert look(page) == stands
    page.get_by_role("button", name="Play").click()
    page.locator(".say[aria-live=polite]").filter(has_text="Round 20 of 20").wait_for()
    assert page.get_by_role("button", name="Play").is_visible() and page.errors == []
    page.close()


def luminance(colour: str) -> float:
    """Relative luminance of a CSS colour, as WCAG 2 defines it."""
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_controls_have_names_and_text_has_contrast(browser, tmp_path, theme):
    """4.5 : 1 for all text; no control without a name; nothing wider than a narrow page."""
    page = static(browser, tmp_path, theme=theme, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    named = """[...document.querySelectorAll('.fl-dial :is(button, input, select, [tabindex])')]
        .filter(e => !(e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText))
        .map(e => e.outerHTML)"""
    assert page.evaluate(named) == []
    narrow = """[...document.querySelectorAll('.fl-dial .knob > :is(input, select)')]
        .filter(e => e.offsetWidth < 180).map(e => e.outerHTML)"""
    assert page.evaluate(narrow) == []
    found = page.evaluate(
        """[...document.querySelectorAll('.fl-dial, .fl-dial *')].flatMap(e => {
            const words = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
            if (!words || e.tagName === 'STYLE') return [];
            const style = getComputedStyle(e), svg = e.tagName === 'text';
            let back = e;
            while (!svg && getComputedStyle(back).backgroundColor === 'rgba(0, 0, 0, 0)')
                back = back.parentElement;
            let card = getComputedStyle(svg ? e.closest('.fl-dial') : back).backgroundColor;
            if (e.dataset.on) {  // on a bar of this colour
                const probe = document.body.appendChild(document.createElement('i'));
                const name = `--fl-${e.dataset.on}`;
                probe.style.color = getComputedStyle(e).getPropertyValue(name);
                card = getComputedStyle(probe).color;
                probe.remove();
            }
            return [[svg ? style.fill : style.color, card, e.textContent]];
        })"""
    )
    assert len(found) > 40
    for ink, card, words in found:
        high, low = sorted((luminance(ink), luminance(card)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (words, ink, card)
    page.close()


# In JupyterLab

CELLS = [
    SETUP,
    *(f"{call}" for call in DIALS.values()),
    "one = fl.course.lesson(2).deviation_explorer(); one",
    "for _ in range(60): time.sleep(0.1)",
    "print(one.values['weight'])",
]


@pytest.fixture(scope="module")
def notebook(browser, lab):
    with open_notebook(browser, lab, "dials.ipynb", CELLS) as page:
        yield page
        assert page.errors == []


def test_every_dial_turns(notebook):
    """Nothing jumps or sticks out while it does, in either theme."""
    outputs = {}
    for index, name in enumerate(DIALS):
        outputs[name] = notebook.run(1 + index)
        outputs[name].locator(".fl-dial svg").first.wait_for()
    notebook.page.wait_for_timeout(300)
    notebook.watch_layout()
    for name, output in outputs.items():
        output.scroll_into_view_if_needed()
        first = look(output)
        turn(output)
        assert all(now != was for now, was in zip(look(output), first, strict=True)), name
        output.get_by_role("button", name="Reset").click()
        assert look(output) == first, name
    assert notebook.jumps() == []
    wide = "e => e.scrollWidth <= e.clientWidth && e.querySelector('.fl-dial').offsetWidth"
    for theme in ("Light", "Dark"):
        notebook.dress(theme, 1024)
        assert all(output.evaluate(wide) for output in outputs.values())


def test_a_dial_turns_while_the_kernel_is_busy(notebook):
    """The kernel hears of it afterwards."""
    count = len(DIALS)
    output = notebook.run(1 + count)
    output.locator(".fl-dial svg").first.wait_for()
    first = look(output)
    busy = """index => {
        const notebook = window.jupyterapp.shell.currentWidget.content;
        const cell = notebook.widgets.filter(one => one.model.type === 'code')[index];
        notebook.activeCellIndex = notebook.widgets.indexOf(cell);
        window.jupyterapp.commands.execute('notebook:run-cell');
    }"""
    status = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status"
    notebook.page.evaluate(busy, 2 + count)
    notebook.page.wait_for_function(f"{status} === 'busy'")
    turn(output)
    assert all(now != was for now, was in zip(look(output), first, strict=True))
    assert notebook.page.evaluate(status) == "busy"
    notebook.page.wait_for_function(f"{status} === 'idle'")
    assert notebook.run(3 + count).inner_text().strip() == "0.8"


# In Python


def test_the_kernel_moves_a_dial_and_sees_where_it_stands():
    one = fl.course.lesson(4).noise_explorer()
    one.set(width=4096)
    assert one.values["width"] == 4096 and one.values["rank"] == 4
    with pytest.raises(ValueError, match=r"^height=1: expected a control: std, width"):
        one.set(height=1)
    one.reset()
    assert one.values["width"] == 64
    assert repr(one).startswith("Dial: What noise on both factors becomes")


def test_what_a_dial_leaves_in_a_notebook():
    """Words for readers without widgets, and all that the site needs to turn it."""
    bundle: Any = fl.course.lesson(4).noise_explorer()._repr_mimebundle_()[0]
    assert bundle["text/plain"].startswith("Dial: ") and len(bundle) == 3
    html = bundle["text/html"]
    assert "Run this cell to turn it." in html and "<script" not in html
    state = re.findall(r'data-fedlora-dial="([^"]*)"', html)[0].replace("&quot;", '"')
    kept = json.loads(state)
    assert kept["lesson"] == "lesson_04" and kept["data"] == {"dial": "noise_explorer"}
    assert kept["values"]["rank"] == 4
