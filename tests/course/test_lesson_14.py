"""What notebook 14 starts from: a model and a table."""

import torch

import fedlora_lab as fl
from fedlora_lab.course.lesson_14 import figures


def test_a_toy_trains_on_its_table(tmp_path):
    own = figures.materials(tmp_path / "toy", rows=12)
    assert own.table["site"].value_counts().to_dict() == dict.fromkeys(
        sorted(set(own.table["site"])), 12
    )
    codes = own.tokenizer(own.table["text"].tolist(), padding=True, return_tensors="pt")
    x = {name: codes[name] for name in ("input_ids", "attention_mask")}
    y = torch.tensor((own.table["label"] == "positive").to_numpy(int))
    task = fl.tasks.classification(own.model, [(x, y)], (x, y), own.targets, own.head)
    plan = fl.Plan(rounds=1, local_steps=1, batch=4)
    *_, last = fl.run(task, "ffa-lora", None, plan)
    assert fl.predict(task, last, x).shape == (48, 2)
