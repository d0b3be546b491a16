"""A task of what `transformers.Trainer` takes."""

from typing import Any

import pytest
import torch
import toy_hubs
import transformers
from calls import Options, refused
from datasets import ClassLabel, Dataset
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorWithPadding

import fedlora_lab as fl
from fedlora_lab.tasks.ragged import Ragged

SHORT = fl.Plan(rounds=1, local_steps=1, batch=4)


def test_a_long_text_makes_only_its_own_row_long():
    """Fault: one note of 2,000 words made 20,000 others as long as itself."""
    column = Ragged(torch.arange(1, 7), torch.tensor([1, 4, 1]), padding=0)
    assert column.values.numel() == 6
    assert column[torch.tensor([2, 0])].to("cpu").tolist() == [[6], [1]]
    assert column[1:].to("cpu").tolist() == [[2, 3, 4, 5], [6, 0, 0, 0]]
    joined = Ragged.joined([column[2:], column[:1]])
    assert joined.to("cpu").tolist() == [[6], [1]]
    long = toy_hubs.texts(40)
    long.loc[0, "text"] = " ".join(toy_hubs.WORDS * 4)
    x, _ = toy_hubs.fresh("bert", long).clients[1]
    assert x["input_ids"].shape[1] <= 10, "texts of at most eight words and two marks"


def test_padding_on_the_left_is_no_other_text():
    left = toy_hubs.tokenizer("bert")
    left.padding_side = "left"
    right = toy_hubs.fresh("bert")
    other = toy_hubs.fresh("bert", data_collator=DataCollatorWithPadding(left))
    assert right.fingerprint == other.fingerprint


def test_sites_and_persons_are_columns_or_names_for_each_row():
    rows = toy_hubs.rows_of("bert")
    names = [row["site"] for row in rows]
    by_names = toy_hubs.of_rows(rows, by=names)
    assert by_names.fingerprint == toy_hubs.of_rows(Dataset.from_list(rows)).fingerprint
    with refused(r"^by='hospital': expected a column: "):
        toy_hubs.of_rows(rows, by="hospital")
    with refused("^by='3 names': expected 48, one for each row"):
        toy_hubs.of_rows(rows, by=names[:3])
    with refused("^by=.*: expected a text or a whole number in every row"):
        toy_hubs.of_rows(rows, by=[0.5] * len(rows))
    sites = [f"site {name}" for name in names]
    with refused("^persons='one at clients site 0 and site 1'"):
        toy_hubs.of_rows(rows, by=sites, person=["ann"] * len(rows))


def test_a_row_keeps_its_person_wherever_it_stands():
    rows = toy_hubs.rows_of("bert")
    mixed = [rows[5 * i % len(rows)] for i in range(len(rows))]
    persons = [f"{row['site']} {row['label']}" for row in mixed]
    task = toy_hubs.of_rows(mixed, person=persons)
    for (_, y), persons in zip(task.clients, task.local_persons, strict=True):
        assert persons.any() and torch.equal(persons, y.unique(return_inverse=True)[1])


def test_nothing_of_private_rows_is_scored_without_public_ones():
    """No run scores them: test_private_test_examples_are_never_judged_under_privacy."""
    task = toy_hubs.of_rows(toy_hubs.rows_of("bert"))
    assert not task.public_test
    private = {tuple(row.tolist()) for x, _ in task.clients for row in x["input_ids"].rows()}
    made_up = {tuple(row.tolist()) for row in task.test[0]["input_ids"].rows()}
    assert not private & made_up


def collated(change):
    """A collator whose batch is changed."""
    pad = DataCollatorWithPadding(toy_hubs.tokenizer("bert"))
    return lambda rows: change(dict(pad(rows)))


def drawn_at_random(batch):
    return {**batch, "input_ids": torch.randint_like(batch["input_ids"], 9)}


def one_row_less(batch):
    return {name: column[1:] for name, column in batch.items()}


@pytest.mark.parametrize("change", [drawn_at_random, one_row_less])
def test_a_collator_that_draws_or_packs_is_refused(change):
    with refused("^data_collator=.*: expected labels, and .* rows of each: not packed"):
        toy_hubs.fresh("bert", data_collator=collated(change))


def test_labels_of_another_name_are_answered_by_the_columns_there_are():
    """Fault: the line named what the collator had made, and no column."""
    rows = [{"input_ids": [1, 2], "verdict": 1, "site": "north"}] * 4
    with refused("^columns='input_ids, site, verdict': expected one named label, as rows.rename"):
        toy_hubs.of_rows(rows, data_collator=None)


def test_labels_that_are_texts_are_told_without_the_text():
    """Fault: the collator was blamed, and the commonest mistake was not named."""
    rows = [{"input_ids": [1, 2], "label": "secret", "site": "north"}] * 4
    with refused("^label='texts': expected whole numbers: cast_column"):
        toy_hubs.of_rows(rows)


class OwnLoss(transformers.BertForSequenceClassification):
    """A model with a loss of its own."""

    options: Options

    def forward(self, input_ids=None, attention_mask=None, labels=None, **given):
        outputs = super().forward(input_ids, attention_mask, **given)
        outputs.logits = 100 * outputs.logits  # of an untrained head: smoothing must show
        if labels is not None:
            loss = torch.nn.CrossEntropyLoss(**self.options)
            outputs.loss = loss(outputs.logits, labels)
        return outputs


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 0.1}, {"weight": torch.tensor([1.0, 50.0])}],
    ids=["smoothing", "weights"],
)
def test_a_loss_that_is_not_the_models_own_is_refused(options):
    """Fault: label smoothing and class weights would be left out without a word. That a padded
    batch has the gradients of its rows alone: test_equals_batches_of_one.
    """
    model = OwnLoss.from_pretrained(toy_hubs.folder("bert"), num_labels=2)
    model.options = options
    with refused("^loss=.* by the model, .* of its logits.*: expected the cross entropy"):
        toy_hubs.fresh("bert", model=model)


def test_rows_that_cannot_be_read_are_refused_in_one_line():
    rows = toy_hubs.rows_of("bert")
    for missing in (None, float("nan")):
        with refused("^label='none in 1 rows': expected a label in every row"):
            toy_hubs.of_rows([{**rows[0], "label": missing}, *rows[1:]])
    with refused("^rows: expected a Dataset or a list of rows, at least one, but"):
        toy_hubs.of_rows(iter(rows), by=["here"] * len(rows))


def test_a_head_that_does_not_have_the_models_classes_is_refused():
    """Fault: rows of a class without a score counted as zero."""
    model = toy_hubs.classifier("bert")
    model.config.num_labels = 5
    with refused("^outputs=2: expected 5, the model's num_labels"):
        toy_hubs.fresh("bert", model=model)


def test_labels_of_a_decoder_that_are_shifted_or_empty_are_refused():
    collator = transformers.DataCollatorForTokenClassification(toy_hubs.tokenizer("llama"))
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(toy_hubs.folder("llama"))
    rows = toy_hubs.answer_rows("llama")
    given = {"by": "site", "data_collator": collator, "targets": ["q_proj"]}
    shifted = [{**row, "labels": [*row["labels"][1:], -100]} for row in rows]
    with refused("^labels='other tokens': expected input_ids, or -100: the model shifts"):
        fl.tasks.from_trainer(model, shifted, **given)
    empty = [{**row, "labels": [-100] * len(row["labels"])} for row in rows]
    with refused("^labels='-100 throughout in most rows'"):
        fl.tasks.from_trainer(model, empty, **given)
    endless = [{**row, "labels": [*row["labels"][:-1], -100]} for row in rows]
    with pytest.warns(UserWarning, match="no end is learned"):
        fl.tasks.from_trainer(model, endless, **given)


def test_tokens_and_classes_that_the_model_does_not_have_are_refused():
    rows = toy_hubs.rows_of("bert")
    more = toy_hubs.tokenizer("bert")
    more.add_tokens(["unheard"])
    with refused("^tokens=.*: expected at most 15: model.resize_token_embeddings"):
        toy_hubs.fresh("bert", data_collator=DataCollatorWithPadding(more))
    table = Dataset.from_list(rows).cast_column("label", ClassLabel(names=["harsh", "kind"]))
    with refused("^id2label=.*: expected the data's ClassLabel: .'harsh', 'kind'."):
        toy_hubs.of_rows(table)
    with refused("^id2label=.*: expected the data's ClassLabel: .'harsh', 'kind'."):
        toy_hubs.of_rows(rows, eval_dataset=table)
    fewer = toy_hubs.classifier("bert", num_labels=1)
    with refused("^labels='others': expected whole numbers in .0, 0., the model's num_labels"):
        toy_hubs.of_rows(rows, fewer)
    with refused("^num_labels=1: expected at least 2 classes: regression is not learned here"):
        toy_hubs.of_rows([{**row, "label": 0} for row in rows], fewer)
    with refused("^targets='all-linear': expected the end of a module's name"):
        toy_hubs.fresh("bert", targets="all-linear")


def test_classes_of_tokens_are_refused():
    """Fault: a label beyond them made its text count as zero, without a word."""
    auto: Any = transformers.AutoModelForTokenClassification
    model = auto.from_pretrained(toy_hubs.folder("bert"), num_labels=3)
    collator = transformers.DataCollatorForTokenClassification(toy_hubs.tokenizer("bert"))
    rows = [{**row, "labels": row["input_ids"]} for row in toy_hubs.rows_of("bert")]
    for row in rows:
        del row["label"]
    with refused("^labels='several a row for a BertForTokenClass.*: expected one class a row, or"):
        toy_hubs.of_rows(rows, model, data_collator=collator)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_model_that_holds_adapters_is_refused():
    """A run would begin at another model than the one that was given."""
    held = get_peft_model(toy_hubs.classifier("bert"), LoraConfig(target_modules=["query"]))
    with refused("^model='Linear': expected a model without an adapter of PEFT's; merge it first"):
        toy_hubs.fresh("bert", model=held.base_model.model)


def test_persons_of_private_rows_are_no_public_ones():
    rows = [{**row, "patient": f"p{i}"} for i, row in enumerate(toy_hubs.rows_of("bert"))]
    with refused("^eval_dataset='1 persons of private rows'"):
        toy_hubs.of_rows(rows[5:], person="patient", eval_dataset=[*rows[:4], rows[6]])


def test_scores_are_those_of_compute_metrics():
    def share_of_ones(scored):
        return {"ones": float((scored.predictions.argmax(-1) == 1).mean())}

    task = toy_hubs.fresh("bert", compute_metrics=share_of_ones)
    first = next(fl.run(task, "rolora", None, SHORT))
    outputs = fl.predict(task, first, task.test[0])
    assert first.metrics["ones"] == float((outputs.argmax(1) == 1).float().mean())


def test_a_rate_is_rehearsed_on_public_rows_that_are_not_scored():
    """Fault: of a task that says which rows are public no rate could be chosen on some of them."""
    rows = toy_hubs.rows_of("bert", toy_hubs.texts(120))
    public = {"test": rows[48:72], "validation": rows[72:]}
    task = toy_hubs.of_rows(rows[:48], eval_dataset=public)
    assert len(task.test[1]) == 24 and len(task.validation[1]) == 48
    privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-3)
    found = fl.rehearse(task, "rolora", privacy, SHORT, [0.1, 0.2], runs=1)
    # A third of the validation rows is scored: 16.
    assert found.measure == "accuracy" and (found.table["score"] * 16 % 1 == 0).all()
    with refused("^eval_dataset=.'dev'.: expected rows, or .'test': rows, 'validation': rows"):
        toy_hubs.of_rows(rows[:48], eval_dataset={"dev": rows[48:]})
