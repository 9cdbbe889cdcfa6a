"""Notebooks in a sweep: each combination of parameters is one task, checked before any starts."""
import re

import nbformat
import pytest

from clstudy.notebooks import sweep
from clstudy.runs import grid


def test_notebooks_are_tasks_with_checked_parameters(tmp_path):
    cell = nbformat.v4.new_code_cell("rate: float = 0.1  # step\nseeds: list[int] = [0]  # each",
                                     metadata={"tags": ["parameters"]})
    path = tmp_path / "01_a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    tasks = sweep.tasks([path], [grid.words(["rate=0.1,0.2", "seeds=[0,1]"])], None)
    assert [task.parameters for task in tasks] == [{"rate": rate, "seeds": [0, 1]}
                                                   for rate in (0.1, 0.2)]
    assert [task.label for task in tasks] == ["01_a rate=0.1", "01_a rate=0.2"]
    assert len({task.id for task in tasks}) == 2 and all(
        re.fullmatch(r"01_a-[0-9a-f]{8}", t.id) for t in tasks)
    path.write_text(path.read_text() + "\n")
    changed = sweep.tasks([path], [{"rate": 0.1, "seeds": [[0, 1]]}], None)
    assert changed[0].id != tasks[0].id and changed[0].parameters == tasks[0].parameters
    with pytest.raises(ValueError, match="parameter='rat' is unknown. Did you mean rate"):
        sweep.tasks([path], [{"rat": 1}], None)
