"""Icon sets of npm's `@iconify-json/*` packages, as pixels.

An icon set is one JSON file: `icons` (a name and an SVG body each), `aliases` (other names, perhaps
turned or mirrored) and default sizes. Nothing here knows what an icon means; that is for the two
scripts that use it.
"""
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

HERE = Path(__file__).parent
CACHE = HERE.parent / "data" / "cache" / "npm"
SIZE = 64  # pixels


def packages(*names: str, cache: Path = CACHE) -> Path:
    """Install the npm packages named in `scripts/emoji/package.json` (exact versions) and return
    `node_modules`.

    `names` restricts the installation; npm is needed only here, and only where a package is
    missing."""
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    modules = cache / "node_modules"
    missing = []
    for name in names or wanted:
        manifest = modules / name / "package.json"
        if not manifest.exists() or json.loads(manifest.read_text())["version"] != wanted[name]:
            missing.append(f"{name}@{wanted[name]}")
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "package.json").touch()
        if not (cache / "package.json").read_text():
            (cache / "package.json").write_text("{}")
        flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
        subprocess.run(["npm", "install", *flags, *missing], cwd=cache, check=True)
    return modules


class IconSet:
    """One family of icons. `names()` lists icons and aliases in a stable order; `svg(name)` is a
    whole document."""

    def __init__(self, modules: Path, prefix: str):
        folder = modules / "@iconify-json" / prefix
        self.prefix = prefix
        self.data = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        self.info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
        self.chars = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
        self.version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]

    def names(self, aliases: bool = True) -> list[str]:
        return sorted(
            self.data["icons"]) + (sorted(self.data.get("aliases", {})) if aliases else [])

    def svg(self, name: str) -> str:
        icon, turns, flips = self._resolve(name)
        left, top = icon.get("left", self.data.get("left", 0)), icon.get(
            "top", self.data.get("top", 0))
        width = icon.get("width", self.data.get("width", 16))
        height = icon.get("height", self.data.get("height", 16))
        body = icon["body"].replace("currentColor", "#000")
        if flips or turns:
            cx, cy = left + width / 2, top + height / 2
            sx, sy = (-1 if "h" in flips else 1), (-1 if "v" in flips else 1)
            move = f"translate({cx} {cy}) rotate({90 * turns}) scale({sx} {sy}) translate({-cx} {-cy})"
            body = f'<g transform="{move}">{body}</g>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{SIZE}" height="{SIZE}">{body}</svg>')

    def _resolve(self, name: str) -> tuple[dict, int, set[str]]:
        turns, flips, changes = 0, set(), {}
        while name not in self.data["icons"]:
            alias = self.data["aliases"][name]
            turns += alias.get("rotate", 0)
            flips ^= {axis for axis in "hv" if alias.get(f"{axis}Flip")}
            changes = {
                **{k: alias[k] for k in ("left", "top", "width", "height") if k in alias}, **changes
            }
            name = alias["parent"]
        return {**self.data["icons"][name], **changes}, turns % 4, flips


def draw(svg: str) -> np.ndarray:
    """RGBA picture of an SVG document, uint8 of shape (SIZE, SIZE, 4)."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if picture.size != (SIZE, SIZE):  # a document that is not square: centred
        square = Image.new("RGBA", (SIZE, SIZE))
        square.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
        picture = square
    return np.asarray(picture)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Composite on white: uint8 (..., 4) to uint8 (..., 3)."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
