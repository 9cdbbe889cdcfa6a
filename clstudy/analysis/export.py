"""Tables as Markdown, CSV and LaTeX in `figures/`."""
import pandas as pd

from clstudy.utils import paths


def save(table: pd.DataFrame, name: str, caption: str,
         numbers: pd.DataFrame | None = None) -> pd.DataFrame:
    """Write a table to figures/NAME.md, .csv and .tex (booktabs). numbers: goes into the .csv
    instead, with all digits. Returns the table."""
    paths.FIGURES.mkdir(parents=True, exist_ok=True)
    flat = table.reset_index()
    head = "| " + " | ".join(flat.columns) + " |\n|" + " --- |" * len(flat.columns)
    body = "\n".join("| " + " | ".join(str(value).replace("|", r"\|") for value in row) + " |"
                     for row in flat.itertuples(index=False))
    (paths.FIGURES / f"{name}.md").write_text(f"{caption}\n\n{head}\n{body}\n")
    (flat if numbers is None else numbers).to_csv(paths.FIGURES / f"{name}.csv", index=False)
    lines = [" & ".join(tex(str(value)) for value in row) + r" \\"
             for row in [flat.columns, *flat.itertuples(index=False)]]
    align = "l" * table.index.nlevels + "r" * table.shape[1]
    lines = [
        rf"\begin{{tabular}}{{{align}}}", r"\toprule", lines[0], r"\midrule", *lines[1:],
        r"\bottomrule", r"\end{tabular}"
    ]
    (paths.FIGURES / f"{name}.tex").write_text("\n".join(lines) + "\n")
    return table


TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "−": "$-$", "→": r"$\rightarrow$", "·": r"$\cdot$", "…": r"\dots{}", "*": "$^*$", "<": "$<$",
    ">": "$>$", **{sign: rf"\{sign}" for sign in "_%&#${}"}
}


def tex(text: str) -> str:
    """Text as LaTeX takes it, with pdflatex and without packages."""
    return "".join(TEX.get(letter, letter) for letter in text)
