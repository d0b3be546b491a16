"""Write the table of docs/lora_options.md: PEFT's options on each architecture, as measured.

python scripts/lora_options.py            print the table
python scripts/lora_options.py --write    put it into the page

With bitsandbytes also the table of a base in few bits.
"""

import argparse
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "lora_options.md"
TABLE, BITS = "table", "bits"
SEEDS = range(5)
sys.path.insert(0, str(ROOT / "tests"))


def table() -> str:
    """The table, and the reasons of what is refused, each as the package says it."""
    import lora_cases

    warnings.simplefilter("ignore")  # of tokenizers without a padding token
    kinds, reasons = lora_cases.ARCHITECTURES, []
    lines = ["| " + " | ".join(("option", *kinds)) + " |", "|" + "---|" * (len(kinds) + 1)]
    for option in lora_cases.OPTIONS:
        row = []
        for kind in kinds:
            found = lora_cases.measure(kind, option)
            if isinstance(found, str):
                row.append("refused")
                if not any(line.startswith(f"- `{option}`") for line in reasons):
                    reasons.append(f"- `{option}` ({kind}): `{found}`")
            else:
                word = "exact" if found <= lora_cases.LIMIT else "WRONG"
                row.append(f"{word} {found:.0e}")
        lines.append(f"| `{option}` | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", "The refusals, as the package prints them:", "", *reasons])


def bits() -> str:
    """A base in few bits beside the whole one: its outputs, and what is learned on it."""
    import fedlora_lab as fl
    from fedlora_lab.federated.simulation import Federation
    from fedlora_lab.lora.per_example import model_outputs

    task, plan = fl.tasks.digits(), fl.Plan()
    privacy, outputs, lines = fl.Privacy().calibrate(epsilon=8, task=task, plan=plan), {}, []
    lines.append("| base | outputs, relative error | accuracy before | after 20 rounds | ε |")
    lines.append("|" + "---|" * 5)
    for kind in (None, "int8", "nf4"):
        run = Federation.open(task, "fedlora", None, plan, quantize=kind)
        values = run.state.server.tensors
        outputs[kind] = model_outputs(task, run.context.adapted, values, task.test[0])
        error = float((outputs[kind] - outputs[None]).norm() / outputs[None].norm())
        ends, begin, spent = [], 0.0, 0.0
        for seed in SEEDS:
            options = {"seed": seed, "quantize": kind, "evaluate_every": plan.rounds}
            first, *_, last = fl.run(task, "fedlora", privacy, plan, **options)  # type: ignore[arg-type]
            begin, spent = first.metrics["accuracy"], last.epsilon
            ends.append(last.metrics["accuracy"])
        mean = sum(ends) / len(ends)
        lines.append(
            f"| {kind or 'float32'} | {error:.1%} | {begin:.3f} | {mean:.3f} | {spent:.3f} |"
        )
    return "\n".join(lines)


def put(page: str, name: str, text: str) -> str:
    """The page with a text between the marks of this name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put it into the page")
    write, found = parser.parse_args().write, {TABLE: table()}
    if find_spec("bitsandbytes") is not None:
        found[BITS] = bits()
    page = PAGE.read_text(encoding="utf-8")
    for name, text in found.items():
        page = put(page, name, text)
        if not write:
            print(text)
    if write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
