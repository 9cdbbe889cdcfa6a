"""The figure of the map: a dot where a method takes a choice, a square for a new point."""
from clstudy import plots
from clstudy.analysis import design_space


def test_each_method_has_a_row_with_a_mark_at_each_choice_it_takes():
    marks = design_space.marks({"mine": {"class_weights": "kl"}}, {"mine": "sit"})
    axis = plots.design_space_map(marks, "A title.").axes[0]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    values = {round(place, 6): label.get_text()
              for place, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)}
    assert list(values.values()) == [one for many in design_space.CHOICES.values() for one in many]
    sizes = {kind: [line for line in axis.lines if line.get_markersize() == 7
                    and line.get_marker() == kind] for kind in "os"}
    said = {rows[line.get_ydata()[0]]: [values[round(x, 6)] for x in line.get_xdata()]
            for kind in "os" for line in sizes[kind]}
    sit = plots.METHODS["sit"][0]
    assert said[sit] == ["batch", "batch", "uniform", "none"]
    assert said["mine"] == ["batch", "batch", "kl", "none"]
    assert said["GDRO"] == ["seen", "moving", "kl", "cvar", "eg", "none"]
    assert len(sizes["s"]) == 1 and rows.index("mine") == rows.index(sit) + 1
    assert axis.figure.get_suptitle() == "A title."
    heads = [text.get_text() for text in axis.texts]
    assert heads == ["candidates", "denominator", "class weights", "vocabulary"]


def test_the_grid_leaves_out_what_means_nothing():
    grid = design_space.grid()
    assert set(grid[grid.denominator == "pairs"].candidates) == {"batch"} and not grid.new.any()
    assert len(grid) == 5 * 5 * 7  # class weights, vocabularies, candidates × denominators less two
    at = grid[(grid.candidates == "seen") & (grid.denominator == "batch") &
              (grid.class_weights == "uniform")]
    assert dict(zip(at.vocabulary, at.methods, strict=True)) == {
        "none": "finetune, er", "classes": "lwf", "random": "vr_lwf", "words": "", "captions": ""}
