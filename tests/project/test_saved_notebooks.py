"""A notebook of `make lab` that is opened again shows no broken control."""

import re

import nbformat
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from places import ROOT
from traitlets.config import Config

import fedlora_lab as fl


def test_a_notebook_is_saved_without_the_views_of_its_controls(tmp_path):
    """Fault: "Error displaying widget" stood wherever a control had been."""
    dial = fl.course.lesson(6).schedule_explorer()
    buttons = fl.course.exercises.predict("06.a").control()
    shown = [shows._repr_mimebundle_() for shows in (dial, buttons)]
    cell = nbformat.v4.new_code_cell("1")
    for bundle in shown:
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        cell.outputs.append(nbformat.v4.new_output("display_data", data=data))
    cell.outputs.append(nbformat.v4.new_output("stream", text="printed"))
    assert "widget-view" in str(cell.outputs[0]) and "widget-view" in str(cell.outputs[1])
    (hook,) = re.findall(r"--ContentsManager.pre_save_hook=(\S+)", (ROOT / "Makefile").read_text())
    config = Config(ContentsManager={"pre_save_hook": hook})
    manager = LargeFileManager(config=config, root_dir=str(tmp_path))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    manager.save({"type": "notebook", "content": notebook}, "a.ipynb")
    manager.save({"type": "file", "format": "text", "content": "x"}, "a.txt")
    (kept,) = nbformat.read(tmp_path / "a.ipynb", 4).cells
    assert "widget-view" not in str(kept.outputs)
    turned, chosen, printed = kept.outputs
    assert "Run this cell to turn it" in turned.data["text/html"]
    assert "Run All Cells wakes it" in chosen.data["text/plain"]
    assert printed.text == "printed"
    for control in (dial, buttons):
        control.close()
