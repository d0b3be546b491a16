"""A notebook opens again without a broken control."""

import re
from typing import Any

import nbformat
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from places import ROOT
from traitlets.config import Config

import fedlora_course as course


def test_a_notebook_is_saved_without_the_views_of_its_controls(tmp_path):
    """Fault: "Error displaying widget" stood wherever a control had been."""
    controls = (
        course.lesson(6).schedule_explorer(),
        course.exercises.predict("06.a").control(),
    )
    bundles = controls[0]._repr_mimebundle_()[0], controls[1]._repr_mimebundle_()
    outputs = [nbformat.v4.new_output("display_data", data=bundle) for bundle in bundles]
    outputs.append(nbformat.v4.new_output("stream", text="printed"))
    assert str(outputs).count("widget-view") == 2
    (hook,) = re.findall(r"--ContentsManager.pre_save_hook=(\S+)", (ROOT / "Makefile").read_text())
    config = Config(ContentsManager={"pre_save_hook": hook})
    cell = nbformat.v4.new_code_cell("1", outputs=outputs)
    manager = LargeFileManager(config=config, root_dir=str(tmp_path))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    manager.save({"type": "notebook", "content": notebook}, "a.ipynb")
    saved: Any = nbformat.read(tmp_path / "a.ipynb", 4)
    turned, chosen, printed = saved.cells[0].outputs
    assert "widget-view" not in str((turned, chosen))
    assert "Run this cell to turn it" in turned.data["text/html"]
    assert "Run All Cells wakes it" in chosen.data["text/plain"] and printed.text == "printed"
    for control in controls:
        control.close()
