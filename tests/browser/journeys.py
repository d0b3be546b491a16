"""What a reader does with each dial of the course, twenty moves or more, and what it must say on the way."""

from dials import Repaints

from fedlora_lab.plots.quantising import KINDS


def reach(dial: Repaints) -> None:
    """Rank up and down, then α."""
    dial.focus("rank r")
    said = dial.moves("ArrowRight", 4)
    reached = [int(words.split("within ")[1].split("%")[0]) for words in said]
    assert reached == sorted(reached, reverse=True) and reached[-1] == 0
    said = dial.moves("ArrowLeft", 6)
    assert "Rank 1 " in said[-1] and "diverges" in said[-1]
    dial.moves("ArrowRight", 2)
    dial.focus("alpha α")
    said = dial.moves("ArrowRight", 2)
    assert "α = 32" in said[-1] and "diverges" in said[-1]
    assert "α = 1 (s = 0.25)" in dial.moves("ArrowLeft", 5)[-1]
    dial.move("ArrowRight")


def explorer(dial: Repaints) -> None:
    """Correlation from one end to the other, A frozen, the square of clients."""
    assert "0.39 too little" in dial.sentence
    dial.focus("correlation")
    assert "0.34 too much" in dial.moves("ArrowLeft", 15)[-1]
    dial.focus("spread of A")
    assert "all clients hold the same A" in dial.move("Home")
    assert "0.49 too much" in dial.move("End")
    dial.focus("spread of B")
    assert dial.moves("ArrowLeft", 2)[-1].startswith("The server holds 1.00")
    dial.output.locator("select").focus()
    assert "both factors differ" in dial.move("f")  # the menu goes to what begins with this letter


def planner(dial: Repaints) -> None:
    """More noise step by step, the other unit, one release more."""
    assert "one example is promised" in dial.sentence
    dial.focus("noise σ")
    start, said = dial.sentence, dial.moves("ArrowRight", 20)
    assert "σ = 4" in said[-1] and len({start, *said}) == 21
    assert "one client" in dial.choose("client")
    dial.focus("releases")
    dial.move("ArrowRight")


def clip(dial: Repaints) -> None:
    """The threshold up to the longest gradient, and back."""
    dial.focus("threshold C")
    start, said = dial.sentence, dial.moves("ArrowRight", 11)
    assert "C = 100" in said[-1] and len({start, *said}) == 12
    dial.moves("ArrowLeft", 9)


def amplifier(dial: Repaints) -> None:
    """A larger B, more noise, a wider layer, rank and α."""
    assert "takes over at std 0.0722" in dial.sentence
    dial.focus("size of B")
    assert len(set(dial.moves("ArrowRight", 10))) == 10
    dial.focus("noise std")
    shares = [int(words.split("carries ")[1].split("%")[0]) for words in dial.moves("ArrowRight", 6)]
    assert shares == sorted(shares) and shares[-1] > 90 > shares[0]
    dial.focus("layer width")
    assert "256 × 256" in dial.move("ArrowRight")
    dial.focus("rank r")
    assert "rank 8" in dial.move("ArrowRight")
    dial.focus("α")
    assert "α = 16" in dial.move("ArrowRight")
    dial.move("ArrowLeft")


def regulator(dial: Repaints) -> None:
    """A smaller peer keeps more than was promised; more noise; the clip in the product's space keeps it exactly."""
    assert "more than the 1.00 promised" in dial.sentence
    dial.focus("peer, 1st")
    said = dial.moves("ArrowLeft", 12)
    assert len(set(said)) == 12 and "less than the 1.00 promised" in said[-2]
    dial.focus("noise σ")
    dial.moves("ArrowRight", 7)
    assert "exactly as promised" in dial.choose("product")


def schedule(dial: Repaints) -> None:
    """Published schedules from the menu, then one of one's own."""
    assert "the mean of the products is exact" in dial.sentence
    for _ in range(5):
        for label in ("FFA-LoRA: B", "FedLoRA: AB", "both, then B: AB | B", "RoLoRA, DEeR: B | A"):
            dial.choose(label)
    said = dial.change(lambda: dial.output.locator("input[type=text]").fill("B | B A"))
    assert "missed in rounds 2, 4, 6" in said


def filter(dial: Repaints) -> None:
    """A rougher gradient and back, longer filters, shuffled channels."""
    assert kept(dial.sentence) == (87, 28)
    dial.focus("smoothness")
    signal = [kept(words)[0] for words in dial.moves("ArrowLeft", 8)]
    assert signal == sorted(signal, reverse=True) and signal[-1] == 60
    assert kept(dial.moves("ArrowRight", 8)[-1])[0] == 87
    dial.focus("taps")
    noise = [kept(words)[1] for words in dial.moves("ArrowRight", 3)]
    assert noise == sorted(noise, reverse=True)
    dial.output.locator("input[type=checkbox]").focus()
    assert kept(dial.move("Space"))[0] < 60


def kept(sentence: str) -> tuple[int, int]:
    """Shares of signal and noise that the sentence states, in percent."""
    signal, noise = (int(part.split("%")[0].split()[-1]) for part in sentence.split("% of the ")[:2])
    return signal, noise


def quantiser(dial: Repaints) -> None:
    """More bits, fewer bits, smaller blocks, larger ones, other numbers."""
    assert dial.sentence.startswith("3 bits, 8 levels, blocks of 64: 3.5 bits a number")
    dial.focus("bits")
    errors = [off(words) for words in dial.moves("ArrowRight", 5)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1
    dial.moves("ArrowLeft", 6)
    dial.focus("block")
    errors = [off(words) for words in dial.moves("ArrowLeft", 3)]
    assert errors == sorted(errors, reverse=True)
    dial.moves("ArrowRight", 5)
    before = off(dial.sentence)
    assert off(dial.choose(KINDS[1])) > before


def off(sentence: str) -> float:
    """The error that the sentence states, in percent."""
    return float(sentence.split("arrives is ")[1].split("%")[0])


def results(dial: Repaints) -> None:
    """Compared with each of the methods in turn."""
    assert "Against FedLoRA" in dial.sentence
    against = dial.output.locator("select").last
    for turn in range(1, 23):
        name = ("FedLoRA", "FFA-LoRA", "DEeR")[turn % 3]
        assert f"Against {name}" in dial.change(lambda name=name: against.select_option(label=name))


def bytes_map(dial: Repaints) -> None:
    """Wider layers, other ranks, more and fewer clients."""
    assert "FedEx-LoRA sends and receives 163.8 kB" in dial.sentence
    dial.focus("layer width")
    assert "12.6 MB" in dial.moves("ArrowRight", 3)[-1]
    dial.focus("rank r")
    dial.moves("ArrowRight", 4)
    dial.moves("ArrowLeft", 6)
    dial.focus("clients")
    dial.moves("ArrowRight", 2)
    dial.moves("ArrowLeft", 4)
    dial.moves("ArrowRight", 1)


def attack(dial: Repaints) -> None:
    """More noise until the image is lost, more releases until it is back, another scan."""
    assert "can be read" in dial.sentence
    dial.focus("noise σ")
    said = dial.moves("ArrowRight", 6)
    assert "is going" in said[1] and "is lost" in said[-1]
    assert seen(said[-1]) < seen(said[0])
    dial.focus("releases")
    said = dial.moves("ArrowRight", 6)
    assert "100 releases" in said[-1] and spent(said[-1]) > spent(said[0])
    dial.focus("rank r")
    dial.moves("ArrowLeft", 2)
    dial.focus("noise σ")
    assert "can be read" in dial.moves("ArrowLeft", 2)[-1]
    dial.focus("releases")
    dial.moves("ArrowLeft", 6)  # one release: every scan comes out with a cosine of its own
    dial.focus("scan")
    dial.moves("ArrowLeft", 3)


def seen(sentence: str) -> float:
    """The cosine that the sentence states."""
    return float(sentence.split("with the scan ")[1].split(" ")[0])


def spent(sentence: str) -> float:
    """The epsilon that the sentence states."""
    return float(sentence.split("ε = ")[1].split(" ")[0].replace(",", ""))


def audit(dial: Repaints) -> None:
    """A bug that grows until it is caught, fewer canaries until nothing can be, a smaller promise."""
    assert "nothing is refuted" in dial.sentence
    dial.focus("bug ×")
    assert "Caught" in dial.moves("ArrowRight", 4)[-1]
    dial.focus("canaries")
    assert "no bug of any size" in dial.moves("ArrowLeft", 4)[-1]
    assert "5000 canaries" in dial.moves("ArrowRight", 8)[-1]
    dial.focus("stated ε")
    assert "states ε = 8" in dial.moves("ArrowRight", 3)[-1]
    dial.moves("ArrowLeft", 5)


def trust(dial: Repaints) -> None:
    """Colluders one by one, other trust, more clients."""
    assert "trust in the masks" in dial.sentence
    dial.focus("colluders")
    said = dial.moves("ArrowRight", 12)
    assert "With 22 clients on its side" in said[-1]
    assert "sees every update as it is" in dial.choose("the server: central")
    assert "Nobody faces more than 2" in dial.choose("nobody: local")
    dial.focus("clients")
    assert "1000 clients" in dial.moves("ArrowRight", 3)[-1]
    dial.focus("promised ε")
    dial.moves("ArrowLeft", 2)
    dial.moves("ArrowRight", 2)


JOURNEYS = {
    made.__name__: made
    for made in (
        reach,
        explorer,
        planner,
        clip,
        amplifier,
        regulator,
        schedule,
        filter,
        quantiser,
        audit,
        trust,
        results,
        bytes_map,
        attack,
    )
}
