"""The laboratory still stands on the library; its own tests lie beside it, in studies/tests."""

import fedlora_lab as fl
from studies import runner
from studies.declared import Case, Study

SIZES = {"clients": 2, "examples": 8, "test": 8, "d_in": 4, "d_out": 3, "rank": 1}
PLAN = {"rounds": 1, "local_steps": 1, "batch": 4}


def test_a_study_is_tuned_and_reported_once(tmp_path):
    """Called again it trains nothing."""
    case = Case(fl.methods.FFA, {"epsilon": None}, ("regression", SIZES), None, {}, PLAN, {})
    study = Study(
        "smoke", "a test", (case,), (0,), (0.05, 0.1, 0.2), tune_seeds=(7, 8), finalists=1
    )
    path = tmp_path / "smoke.jsonl"
    done = runner.run_study(study, path, bar=False)
    content = path.read_bytes()
    assert runner.run_study(study, path, bar=False) == done and path.read_bytes() == content
    frame = runner.study_frame(study, path)
    assert frame["seed"].tolist() == [0] and frame["lr"].tolist() == [0.1]
