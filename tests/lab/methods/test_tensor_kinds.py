"""A new kind of trained tensor: a row of `KINDS`, and a method whose `initial_factors` make it."""

from calls import refused
from toy_tasks import play, regression

import fedlora_lab as fl
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.method import Cycle
from fedlora_lab.methods.state import KINDS, ParamKey, TensorKind


def test_a_new_kind_is_trained_sent_counted_and_not_lost_on_the_way_out(monkeypatch, tmp_path):
    """A method that trains a shift S of each layer's output beside B."""
    kind = TensorKind(
        trained=True,
        scheduled=True,
        sent_up=True,
        sent_down=True,
        shape=lambda d_out, d_in, rank: (d_out,),
        output=lambda y, shift: y + shift.unsqueeze(1),
    )
    monkeypatch.setitem(KINDS, "S", kind)

    def start(weight, rank):
        return {"S": weight.new_zeros(len(weight))}

    row = fl.methods.FFA.replace(name="shift", schedule=Cycle(("BS",)), initial_factors=start)
    plain, last = (play(regression(), method, None)[-1] for method in ("ffa-lora", row))
    assert require_source(last)[2].tensors[ParamKey("S", "map")].all()
    added = [count - before for count, before in zip(last.traffic, plain.traffic, strict=True)]
    assert added == [15, 60, 15, 60], "five numbers of four bytes for each client, up and down"
    with refused("no place"):
        fl.save_adapter(last, tmp_path / "adapter")
