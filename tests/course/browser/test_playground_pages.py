"""The playground in Chromium: its engine against the library's, its random numbers, its use."""

import base64
import json
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import playground as script
import pytest
import torch
from jupyter_lab import THEMES, accessibility_faults, faintest_line
from PIL import Image
from torch import nn

import fedlora_lab as fl
from fedlora_course import playground
from fedlora_course.lesson_04 import figures as lesson
from fedlora_course.widgets.scene import COLOURS
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.methods.quantization import normal_float
from fedlora_lab.methods.state import ParamKey

TABLES = json.loads((playground.HERE / "tables.json").read_text())
SLUGS = [row["slug"] for row in TABLES["methods"]]
SEED, RANK, SPLIT, NOISE, CLIP, RATE, BITS, ROUNDS = 5, 5, 2, 4, 0.7, 0.8, 2, 10
LORA = fl.Lora(rank=RANK, alpha=TABLES["scaling"] * RANK)
A, B, W = (ParamKey(name, "0") for name in "ABW")


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The page, opened as a file; whatever it asks of a network or complains of is an error."""
    path = tmp_path_factory.mktemp("playground") / "playground.html"
    path.write_text(playground.page(), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda r: r.url.startswith("http") and errors.append(r.url))
    page.goto(path.as_uri())
    page.evaluate("window.pg = document.querySelector('[data-fedlora-playground]').playground")
    yield page
    page.close()
    assert errors == []


# ---- the engine, held to the library


USUAL, OTHER = (1, 1), (2, 2)
"""Places of the number of clients and of local steps."""


def plan_of(places):
    steps = TABLES["steps"][places[1]]
    return fl.Plan(rounds=TABLES["rounds"], local_steps=steps, batch=TABLES["batch"], lr=RATE)


@cache
def task_of(places):
    """The page's digits and network as a task of the library, in float64."""
    model = script.network()
    numbers = torch.tensor(np.frombuffer(base64.b64decode(TABLES["weights"]), "<f4").copy())
    nn.utils.vector_to_parameters(numbers, model.parameters())

    # That they are those of the tables: tests/course/test_playground.py.
    x, y = script.handwritten_digits()
    pairs = [(2 * x[part].flatten(1).double(), y[part]) for part in script.split_digits()]
    (x, y), test = pairs
    count = TABLES["clients"][places[0]]
    owner = script.owners([*script.LIKENESS.values()][SPLIT], count)
    clients = [(x[owner == k], y[owner == k]) for k in range(count)]
    return fl.tasks.classification(model.double(), clients, test=test, targets=["0"])


@cache
def privacy_of(places):
    clients, steps = places
    epsilon = TABLES["splits"][SPLIT]["noise"][clients][steps][NOISE]["epsilon"]
    plain = fl.Privacy(delta=TABLES["delta"], clip_norm=CLIP)
    return plain.calibrate(epsilon=epsilon, task=task_of(places), plan=plan_of(places))


def method_of(slug):
    row = fl.methods.get(slug)
    return row.replace(broadcast=normal_float(width=BITS, block=64)) if slug == "fedlpp" else row


def given(places, method, t):
    """The batches and the noise that the library draws in round t, as the page takes them."""
    task, plan = task_of(places), plan_of(places)
    streams = Streams(SEED)
    rates = plan.sample_rates(task.sizes)
    steps = range(plan.local_steps)
    drawn = [
        [streams.uniform((n,), "sampling", t, k, s) < rates[k] for k, n in enumerate(task.sizes)]
        for s in steps
    ]
    noise = []
    for s in steps:
        # In the order in which the library cuts a client's draw into tensors.
        factors = [factor for factor in "AB" if factor in method.factors_at_step(t, s)]
        shape = len(factors), 64 * RANK
        rows = [streams.normal(shape, "noise", t, k, s) for k in range(len(task.sizes))]
        stds = torch.tensor(privacy_of(places).noise_multiplier) * CLIP
        rows = [
            dict(zip(factors, (std * row).tolist())) for std, row in zip(stds, rows, strict=True)
        ]
        noise.append(rows)
    batches = [[row.nonzero().flatten().tolist() for row in rows] for rows in drawn]
    return {"batches": batches, "noise": noise}


def ask(page, function, *values):
    """Calls a function in the page; as one text, numbers cross ten times as fast."""
    call = f"text => JSON.stringify(({function})(...JSON.parse(text)))"
    return json.loads(page.evaluate(call, json.dumps(values)))


SETTINGS = {"rate": RATE, "clip": CLIP, "rank": RANK, "split": SPLIT, "noise": NOISE}
SETTINGS |= {"clients": USUAL[0], "steps": USUAL[1]}


def begin(page, slug, start, places=USUAL):
    """Opens a run on the page that begins from the library's factors."""
    settings = {**SETTINGS, "method": slug, "bits": BITS, "seed": SEED}
    settings |= {"clients": places[0], "steps": places[1]}
    factors = {side: x.flatten().tolist() for side, x in zip("AB", start, strict=True)}
    code = (
        "(settings, start) => { window.run = new pg.Run(pg.problem, settings, start); return 0; }"
    )
    ask(page, code, settings, factors)


def far(values, expected):
    """Distance over size; of zero the distance."""
    expected = np.asarray(expected, float).ravel()
    gap = np.linalg.norm(np.ravel(values) - expected)
    return gap / (np.linalg.norm(expected) or 1.0)


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("slug", "places"), [*((slug, USUAL) for slug in SLUGS), ("la-lora", OTHER)]
)
def test_ten_rounds_of_the_page_are_those_of_the_library(page, slug, places):
    """Factors, residual, accuracy of server and copy; and its noise adds up. With other clients and
    local steps the row that takes turns within a round."""
    method = method_of(slug)
    task, privacy, plan = task_of(places), privacy_of(places), plan_of(places)
    records = fl.run(task, method, privacy, plan, lora=LORA, seed=SEED)
    first = next(records)
    begin(page, slug, [x.double() for x in first.adapter["0"]], places)
    for t, record in zip(range(ROUNDS), records, strict=False):
        made = ask(
            page,
            """given => {
                const record = run.roundAtOnce(given);
                const {A, B} = run.factors;
                const all = [A, B, run.product(), ...run.parts()].map(x => Array.from(x));
                return {record: {...record, answers: null}, all};
            }""",
            given(places, method, t),
        )
        a, b, product, *parts = made["all"]
        expected = [x.double() for x in record.adapter["0"]]
        assert record.source is not None
        residual = record.source[2].tensors.get(W)
        whole = expected[1] @ expected[0] + (0 if residual is None else residual.double())
        assert far(a, expected[0]) < 1e-5 and far(b, expected[1]) < 1e-5, t
        assert far(product, whole) < 1e-5 and far(np.sum(parts, 0), product) < 1e-9, t
        scores = made["record"]
        assert scores["accuracy"] == pytest.approx(record.metrics["accuracy"], abs=1e-5)
        received = record.metrics.get("accuracy_received", record.metrics["accuracy"])
        assert scores["received"] == pytest.approx(received, abs=1e-5)
        layer = np.linalg.norm(task.model.get_parameter("0.weight").detach())
        sizes = [2 * np.linalg.norm(part) / layer for part in parts]
        assert scores["sizes"] == pytest.approx(sizes, rel=1e-6)
        assert scores["size"] == pytest.approx(2 * np.linalg.norm(product) / layer, rel=1e-6)


def test_a_story_s_run_is_the_committed_one(page):
    """Of one seed; a browser whose last digits differ may read a few of 360 digits otherwise."""
    runs = pd.read_csv(script.RUNS).query("method == 'fedlora' and epsilon == 8 and rate == 1.6")
    settings = {**SETTINGS, "method": "fedlora", "rate": 1.6, "clip": 1, "rank": 8, "bits": 2}
    seed, accuracy, *_ = ask(page, script.FINAL, settings, [script.SEEDS[0]])[0]
    committed = runs.set_index("seed")["accuracy"][seed]
    assert accuracy == pytest.approx(committed, abs=0.02)


# ---- its random numbers


def test_noise_and_batches_of_the_page_are_what_they_are_said_to_be(page):
    """Gaussian of the stated size, Poisson draws, independent of one another, told by a seed."""
    code = Path(__file__).with_name("playground_statistics.js").read_text(encoding="utf-8")
    distances = ask(page, code[code.index("() =>") :])
    assert len(distances) == 40
    # What is no number is null.
    assert {name: x for name, x in distances.items() if x is None or abs(x) >= 5} == {}


# ---- its use

PLAY = "[data-do=play]"


def test_a_control_redraws_only_what_changed(page):
    """Before a run no method's digits and matrices wait for the slider of the rate."""
    page.evaluate(
        """() => {
            window.painted = [];
            const {putImageData} = CanvasRenderingContext2D.prototype;
            CanvasRenderingContext2D.prototype.putImageData = function (...given) {
                painted.push(this.canvas.closest('[data-lane]').dataset.lane);
                return putImageData.apply(this, given);
            };
        }"""
    )
    rates = page.locator("[data-chart=rate]")
    band = rates.locator("polygon").first.get_attribute("points")
    page.locator("[data-knob=rate]").press("ArrowLeft")
    rates.locator(f"polygon:not([points='{band}'])").first.wait_for(state="attached")
    assert page.evaluate("painted") == []
    page.locator("select[data-method]").nth(1).select_option("rolora")
    page.wait_for_function("painted.length > 0")
    assert {*page.evaluate("painted")} == {"1"}
    page.evaluate("pg.change({methods: ['fedlora', 'ffa-lora'], rate: 10})")


def test_the_page_answers_its_reader_before_it_trains(page):
    """Sentence and picture of the new setting come ahead of the first gradient, however soon the
    browser would let it train."""
    page.evaluate(
        """() => {
            window.deeds = [];
            const {clippedSum} = pg.Run.prototype;
            pg.Run.prototype.clippedSum = function (...given) {
                deeds.push('train');
                return clippedSum.apply(this, given);
            };
            for (const place of ['.say', '[data-chart=rate]']) {
                const watch = new MutationObserver(() => deeds.push(place));
                watch.observe(document.querySelector(place), {childList: true, subtree: true});
            }
            scheduler.postTask = work => queueMicrotask(work);
            pg.change({seed: 3, rate: 9});
            pg.play(true);
        }"""
    )
    page.wait_for_function("pg.lanes[0].round > 0")
    page.evaluate("delete scheduler.postTask; pg.play(false); pg.change({rate: 10})")
    before = page.evaluate("deeds.slice(0, deeds.indexOf('train'))")
    assert {*before} == {".say", "[data-chart=rate]"}


def test_a_run_starts_pauses_steps_and_begins_anew_by_the_keyboard(page):
    page.evaluate("pg.change({seed: 3})")
    rounds = page.locator("[data-round]")
    page.locator(PLAY).press("Enter")
    page.wait_for_function("pg.lanes[0].round >= 8")
    page.locator(PLAY).press("Enter")
    assert page.locator(PLAY).inner_text() == "Go on"
    before = page.evaluate("pg.lanes[1].round")  # of a round under way the second ends last
    page.locator("[data-do=step]").press("Enter")
    page.wait_for_function(
        "before => document.querySelector('[data-round]').textContent.startsWith(`${before + 1} `)",
        arg=before,
    )
    methods = page.locator("select[data-method]").evaluate_all("all => all.map(e => e.value)")
    assert methods == page.evaluate("pg.state.methods") == ["fedlora", "ffa-lora"]
    # At rest the sentence is read out, and it is the one that is seen.
    assert page.locator("[aria-live=polite]").inner_text() == page.locator(".say").inner_text()
    slider = page.locator("[data-knob=rate]")
    slider.press("ArrowRight")
    assert page.evaluate("pg.lanes[0].round") == 0
    assert slider.get_attribute("aria-valuetext") == page.locator("[data-words=rate]").inner_text()
    assert page.locator(PLAY).inner_text() == "Start"
    # What ran to its end stays in sight, named by what is set otherwise; what did not is gone.
    page.evaluate("while (pg.lanes[0].round < pg.problem.rounds) pg.step()")
    assert page.locator(PLAY).inner_text() == "Start again"
    slider.press("ArrowLeft")
    labels = page.locator("[data-chart=accuracy] text")
    labels.filter(has_text="FedLoRA 2.3").wait_for()
    page.locator("[data-knob=noise]").press("ArrowLeft")
    labels.filter(has_text="2.3, ε 8").first.wait_for()
    assert labels.filter(has_text="1.6").count() == 0
    page.locator("[data-do=reset]").press("Enter")
    assert rounds.inner_text() == f"0 / {TABLES['rounds']}"


def test_a_round_that_is_drawn_in_pieces_is_a_round_at_once(page):
    """Pausing and going on, and the frame's budget, change no bit."""
    page.evaluate("pg.change({seed: 4, methods: ['fedlpp', 'fedex-lora']}); pg.play(true)")
    page.wait_for_function("pg.lanes[1].round >= 5")
    page.evaluate("pg.play(false)")
    equal = """pg.lanes.map(lane => {
        const alone = new pg.Run(pg.problem, lane.settings);
        while (alone.round < lane.round) alone.roundAtOnce();
        return String(alone.factors.A) === String(lane.factors.A);
    })"""
    # It may have paused between the ends of a round of the two; a step ends that round.
    page.evaluate("pg.step()")
    assert page.evaluate("pg.lanes[0].round === pg.lanes[1].round")
    assert page.evaluate(equal) == [True, True]


def test_a_story_waits_for_its_reader_and_the_pictures_answer_a_pointer(page):
    page.evaluate("pg.act(0, 0); pg.play(false)")
    page.evaluate("while (pg.lanes[0].round < pg.problem.rounds) pg.step()")
    assert page.locator(PLAY).inner_text() == "Next"
    page.locator(PLAY).press("Enter")
    page.locator(".say small", has_text="2 of 3").wait_for()
    page.wait_for_function("pg.lanes[0].round > 0")
    page.evaluate("pg.play(false)")
    page.locator("[data-chart=rate] text", has_text=re.compile("^0.4$")).click()
    assert page.locator("[data-words=rate]").inner_text() == "0.4"
    page.evaluate("for (let i = 0; i < 9; i++) pg.step()")
    page.locator("[data-chart=accuracy] .grid").nth(1).hover(force=True)
    tip = page.locator("[data-chart=accuracy] .hover text")
    earlier = tip.all_text_contents()
    page.evaluate("while (pg.lanes[0].round < 30) pg.step()")
    tip.nth(len(earlier)).wait_for()  # the new lines have come to where the pointer rests
    assert set(earlier) < set(tip.all_text_contents())


def test_the_page_says_what_its_pictures_show(page):
    """The product written out, an empty chart explained, one axis for a story, a slider in use."""
    ticks = page.locator("[data-chart=accuracy] text[text-anchor=end]")
    page.evaluate("pg.act(0, 0); pg.play(false)")
    page.locator("[data-round]", has_text="0 /").wait_for()
    page.wait_for_function("document.querySelector('[data-spent]').textContent.includes('of 8')")
    axis = ticks.all_text_contents()
    page.evaluate("pg.act(0, 2); pg.play(false)")
    page.evaluate("while (pg.lanes[0].round < pg.problem.rounds) pg.step()")
    page.locator("[data-spent]", has_text="1 of 1 spent").wait_for()
    assert ticks.all_text_contents() == axis
    adapters = page.locator(".expansion")
    page.evaluate("pg.change({methods: ['ffa-lora', 'fedlpp'], noise: 4})")
    adapters.last.get_by_text("noise × noise").wait_for()
    said = "all => all.map(e => e.textContent.replace(/\\?[^?]*Lesson \\d+/g, ''))"
    parts = [*lesson.WORDS.values()]
    assert [" ".join(text.split()) for text in adapters.evaluate_all(said)] == [
        f"(B + noise) A =learned + {parts[0]}",
        f"(B + noise) (A + noise) =learned + {' + '.join(parts)}",
    ]
    page.evaluate("pg.change({noise: 6})")
    adapters.last.get_by_text("noise × noise").wait_for(state="detached")
    texts = [" ".join(text.split()) for text in adapters.evaluate_all(said)]
    assert texts == ["B A =learned"] * 2
    assert page.locator("[data-knob=bits]").is_visible()
    page.evaluate("pg.change({methods: ['ffa-lora', 'fedlora'], noise: 4})")
    assert page.locator("[data-knob=bits]").is_hidden()


def test_symbols_are_explained_one_at_a_time_with_their_lesson(page):
    """B, A, ε, C and r, without a script of the page's own, on a narrow page too."""
    page.set_viewport_size({"width": 390, "height": 900})
    page.evaluate("pg.change({methods: ['fedlora', 'ffa-lora']}); pg.play(false)")
    marks = page.locator(".why summary")
    names = [f"What is {symbol}?" for symbol in TABLES["help"]]
    assert sorted(marks.evaluate_all("all => all.map(e => e.ariaLabel)")) == sorted(names)
    for symbol, words in TABLES["help"].items():
        page.get_by_label(f"What is {symbol}?").press("Enter")
        shown = page.locator(".why[open]")
        shown.filter(has_text=words["say"]).wait_for()
        page.wait_for_function("document.querySelectorAll('.why[open]').length === 1")
        place = shown.locator("a").get_attribute("href")
        assert (script.PAGE.parent / place).exists()
        box = shown.locator("span").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.locator(".why[open]").evaluate_all("all => all.forEach(one => { one.open = false; })")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_link_opens_the_setting_that_it_was_copied_from(page, browser):
    """What no knob has is left out."""
    page.evaluate(
        "pg.change({methods: ['rolora', 'fedlpp'], rate: 4, noise: 6, clients: 2, seed: 7})"
    )
    copied = page.url
    other = browser.new_page()
    other.goto(copied)
    state = "document.querySelector('[data-fedlora-playground]').playground.state"
    assert other.evaluate(state) == page.evaluate("pg.state")
    other.evaluate("location.hash = 'rate=0.2&rank=99&methods=none+fedlora&seed=x'")
    other.wait_for_function(f"{state}.rate === 4 && {state}.rank === 7")
    expected = {"methods": ["fedlora", "ffa-lora"], "seed": 0, "clients": 1, "noise": 4}
    assert expected.items() <= other.evaluate(state).items()
    other.close()
    page.evaluate("pg.change({clients: 1, noise: 4, seed: 0})")


def test_the_picture_that_is_saved_is_the_one_that_is_seen(page):
    """Its size, and the colours of the parts of the product and of wrong answers."""
    page.emulate_media(color_scheme="light")
    page.evaluate("pg.change({methods: ['fedlora', 'ffa-lora'], rate: 10})")
    page.evaluate("while (pg.lanes[0].round < 9) pg.step()")
    page.wait_for_timeout(200)
    with page.expect_download() as download:
        page.locator("[data-do=save]").click()
    with Image.open(download.value.path()) as picture:
        drawn = picture.convert("RGB")
    box = page.locator(".fl-playground").bounding_box()
    assert drawn.size == (int(2 * box["width"]), int(2 * box["height"]))
    pixels: Any = drawn.getcolors(drawn.width * drawn.height)
    colours = {f"#{bytes(colour).hex().upper()}" for _, colour in pixels}
    assert {COLOURS[name] for name in (*lesson.COLOURS.values(), "red")} <= colours


def test_the_playground_can_be_used_by_everybody_on_a_narrow_page(page):
    """Names, contrast, nothing wider than the page, and not endlessly long, in either theme."""
    page.evaluate("pg.act(0, 0)")
    page.wait_for_function("pg.lanes[0].round >= 3")
    page.evaluate("pg.play(false)")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme, rules in zip(("light", "dark"), THEMES.values(), strict=True):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("document.documentElement.scrollHeight") < 2600
            assert accessibility_faults(page, rules=rules) == []
            assert faintest_line(page, ".fl-playground") >= 3


HOSTS = {
    "VS Code Dark": ("", "data-vscode-theme-kind='vscode-dark'", "dark"),
    "VS Code Light": ("", "data-vscode-theme-kind='vscode-light'", "light"),
    "VS Code high contrast": ("", "data-vscode-theme-kind='vscode-high-contrast'", "dark"),
    "VS Code light contrast": ("", "data-vscode-theme-kind='vscode-high-contrast-light'", "light"),
    "Colab dark": ("theme='dark'", "", "dark"),
    "Colab light": ("theme='light'", "", "light"),
}
"""What marks the theme of a page: on html, on body, and the ground; the system is dark."""
CARDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 17, 17)"}
TWO_CELLS = """<!doctype html><html {html}><style>:root {{ --jp-layout-color0: white; }}</style>
<body {body}><div></div><div></div><script>
onerror = onunhandledrejection = event => parent.postMessage(String(event.reason ?? event), '*');
(async () => {{
    for (const element of document.querySelectorAll('div')) {{
        const address = URL.createObjectURL(new Blob([{module}], {{type: 'text/javascript'}}));
        const {{default: widget}} = await import(address);
        await widget.render({{model: {{get: () => ({{}})}}, el: element}});
        element.querySelector('[data-do=step]').click();
    }}
    const every = (name, say) => Array.from(document.querySelectorAll(name), say);
    const grounds = () => every('[data-ground]', e => e.dataset.ground);
    while (grounds().length < 2) await new Promise(requestAnimationFrame);
    const rounds = every('[data-round]', e => e.textContent);
    const ids = every('[id]', e => e.id);
    const twice = ids.filter((id, i) => ids.indexOf(id) !== i);
    const cards = every('.fl-playground', e => getComputedStyle(e).backgroundColor);
    parent.postMessage({{origin: self.origin, rounds, twice, grounds: grounds(), cards}}, '*');
}})();
</script></body></html>"""


def test_two_cells_train_in_a_frame_of_no_origin(browser):
    """As VS Code and Colab load a widget: each cell a module of its own, from a blob, in a sandbox
    without storage or network; and the theme is the notebook's, neither the system's nor that of
    the widget manager, which brings the white of JupyterLab into a dark notebook."""
    module = json.dumps(playground.module()).replace("</", "<\\/")
    page = browser.new_page(color_scheme="dark")
    for host, (html, body, ground) in HOSTS.items():
        frame = escape(TWO_CELLS.format(html=html, body=body, module=module))
        page.set_content(
            "<script>seen = []; onmessage = event => seen.push(event.data);</script>"
            f'<iframe sandbox="allow-scripts" width="900" height="700" srcdoc="{frame}"></iframe>'
        )
        page.wait_for_function("seen.length > 0")
        rounds = [f"1 / {TABLES['rounds']}"] * 2
        expected = {"origin": "null", "rounds": rounds, "twice": [], "grounds": [ground] * 2}
        expected["cards"] = [CARDS[ground]] * 2
        assert page.evaluate("seen") == [expected], host
    page.close()
