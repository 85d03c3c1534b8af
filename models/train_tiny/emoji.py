"""Stage ``emoji``: rasterise the grammar's objects from the npm package into the sprite atlas."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import resvg_py
from PIL import Image

from common.terminal import say
from models.scenes import OBJECT_ICONS
from models.sprites import ATLAS_PATH, CELL, atlas_size, cell_box

NPM_PACKAGE = "@iconify-json/fluent-emoji-flat@1.2.6"
_OVERSAMPLING = 4


def fetch_icons() -> dict[str, str]:
    """Icon name -> SVG body, from the npm package; raises ``CalledProcessError`` where npm fails."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", NPM_PACKAGE], cwd=folder, check=True, capture_output=True)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as package:
            member = package.extractfile("package/icons.json")
            if member is None:
                raise ValueError(f"{NPM_PACKAGE} holds no icons.json")
            icons = json.load(member)["icons"]
    return {name: icon["body"] for name, icon in icons.items()}


def rasterise(body: str, side: int) -> Image.Image:
    """An icon's SVG body (32 x 32 units) as an RGBA picture of ``side`` pixels."""
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="32" height="32">{body}</svg>'
    large = side * _OVERSAMPLING
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=large, height=large))
    picture = Image.open(io.BytesIO(png)).convert("RGBa")
    return picture.resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")


def run() -> None:
    """Write the atlas to ``models/sprites.png``."""
    bodies = fetch_icons()
    atlas = Image.new("RGBA", atlas_size())
    for index, icon in enumerate(OBJECT_ICONS.values()):
        atlas.paste(rasterise(bodies[icon], CELL), cell_box(index)[:2])
    atlas.save(ATLAS_PATH, optimize=True)
    say(f"{ATLAS_PATH}: {len(OBJECT_ICONS)} sprites, {ATLAS_PATH.stat().st_size} bytes")
