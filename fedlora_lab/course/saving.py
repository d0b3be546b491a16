"""What a notebook of `make lab` keeps of its controls when it is saved.

A control lives in the kernel. A notebook that is opened again later has no kernel yet, and where a
control stood JupyterLab writes "Error displaying widget". So no view of one is saved: a dial keeps
its words, any other control one line, and the picture in the cell below stands as it is.
"""

from typing import Any

VIEW = "application/vnd.jupyter.widget-view+json"
ASLEEP = "A control stands here while the notebook runs. Run → Run All Cells wakes it."


def without_views(model: dict[str, Any], **saving: Any) -> None:
    """Takes the views of controls out of a notebook before it is written.

    Args: model: of the file, as Jupyter's contents managers hand it to ``pre_save_hook``.
    Guarantees: test_saved_notebooks.py::test_a_notebook_is_saved_without_the_views_of_its_controls.
    """
    if model["type"] != "notebook" or not model.get("content"):
        return
    for cell in model["content"]["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            # A page shows the HTML of a dial; the text of another control means nothing there.
            if data.pop(VIEW, None) is not None and "text/html" not in data:
                data["text/plain"] = ASLEEP
