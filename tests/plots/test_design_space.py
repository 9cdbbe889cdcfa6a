"""Figures of the map: a word where a method stands, nothing where nothing is known, a dot per
comparison."""

from clstudy import plots
from clstudy.analysis import design_space


def test_the_map_shows_each_method_and_each_new_point_in_its_cell():
    grid = design_space.grid({"mine": {"class_weights": "kl"}})
    axis = plots.design_space_map(grid).axes[0]
    said = {
        text.get_text(): (int(text.get_position()[0]), int(text.get_position()[1]))
        for text in axis.texts
    }
    rows = [label.get_text() for label in axis.get_yticklabels()]
    columns = [label.get_text() for label in axis.get_xticklabels()]
    assert len(rows) == 25 and columns[-1].startswith(
        "moving") and "pairs\nbatch" in columns and len(columns) == 7
    for text, column, row in (("sit", "batch\nbatch", "none · uniform"), ("gdro", "moving\nseen",
                                                                          "none · cvar"),
                              ("mine", "batch\nbatch", "none · kl"), ("clip_loss", "pairs\nbatch",
                                                                      "none · uniform")):
        if text != "gdro":
            assert said[text] == (columns.index(column), rows.index(row))
    assert sum(text.get_text() == "gdro" for text in axis.texts) == 3
    assert len(axis.patches) == 175 == len(grid)


def test_the_grid_leaves_out_what_means_nothing():
    grid = design_space.grid()
    assert set(grid[grid.denominator == "pairs"].candidates) == {"batch"} and not grid.new.any()
    assert len(grid) == 5 * 5 * 7  # class weights, vocabularies, candidates × denominators less two
    at = grid[(grid.candidates == "seen") & (grid.denominator == "batch") &
              (grid.class_weights == "uniform")]
    assert dict(zip(at.vocabulary, at.methods, strict=True)) == {
        "none": "finetune, er", "classes": "lwf", "random": "vr_lwf", "words": "", "captions": ""}
