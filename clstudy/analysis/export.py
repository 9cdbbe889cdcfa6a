"""Save tables as Markdown, CSV and LaTeX in `figures/`."""
import pandas as pd

from clstudy.utils import paths

TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
       "±": r"$\pm$", "−": "$-$", "→": r"$\rightarrow$", "·": r"$\cdot$", "…": r"\dots{}",
       "*": "$^*$", "<": "$<$", ">": "$>$", **{sign: rf"\{sign}" for sign in "_%&#${}"}}


def save(table: pd.DataFrame, name: str, caption: str,
         numbers: pd.DataFrame | None = None) -> pd.DataFrame:
    """Write a table to figures/NAME.md, .csv and .tex (booktabs), and return it.

    numbers: a table for the .csv instead, with all digits."""
    paths.FIGURES.mkdir(parents=True, exist_ok=True)
    flat = table.reset_index()
    rows = [[str(cell) for cell in row] for row in (flat, *flat.itertuples(index=False))]
    head, *body = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
                   for row in rows]
    lines = [caption, "", head, "|" + " --- |" * len(flat.columns), *body]
    (paths.FIGURES / f"{name}.md").write_text("\n".join(lines) + "\n")
    (flat if numbers is None else numbers).to_csv(paths.FIGURES / f"{name}.csv", index=False)
    head, *body = [" & ".join(map(tex, row)) + r" \\" for row in rows]
    align = "l" * table.index.nlevels + "r" * table.shape[1]
    lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *body,
             r"\bottomrule", r"\end{tabular}"]
    (paths.FIGURES / f"{name}.tex").write_text("\n".join(lines) + "\n")
    return table


def tex(text: str) -> str:
    """Return text as pdflatex takes it, without packages."""
    return "".join(TEX.get(letter, letter) for letter in text)
