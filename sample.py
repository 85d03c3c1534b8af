"""Make pictures: python sample.py "a prompt" --checkpoint PLACE [--images 4] [--seed 0] [--output
picture.png] [key=value ...]"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import ConfigError
from common.storage import replace_file
from common.terminal import run_command, say, typed
from driver import api
from driver.command_line import Arguments, check_writable, fail, parse_arguments

USAGE = 'python sample.py "a prompt" --checkpoint PLACE [--images 1] [--seed 0] [--output FILE] [key=value]'
FLAGS = {
    "--checkpoint": "folder or URI of a checkpoint, RUN_FOLDER/checkpoints/epoch_…",
    "--config": "configuration file, to sample from the pretrained model instead of a checkpoint",
    "--images": "number of pictures (1)",
    "--seed": "seed of the noise (0)",
    "--output": "file to write (sample.png); several pictures side by side",
}
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tiff": "TIFF"}
"""By suffix of the file."""


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 2 an error that the text explains."""
    with fail():
        given = parse_arguments(arguments, USAGE, FLAGS)
        if len(given.words) != 1:
            raise ConfigError(
                f"One prompt in quotes is needed, {len(given.words)} given."
                f"{given.not_understood(given.words)}{_taken_for_settings(given)}\nUsage: {USAGE}"
            )
        sample(typed(given.words[0]), given)
        return 0
    return 2


def sample(prompt: str, given: Arguments) -> None:
    """Sample and write the picture."""
    images, seed = given.whole_number("--images", 1, least=1), given.whole_number("--seed", 0, least=0)
    output = picture_file(given.flags.get("--output", "sample.png"))
    config, checkpoint = given.flags.get("--config"), given.flags.get("--checkpoint")
    pixels = api.sample(prompt, checkpoint, api.load(config, checkpoint, given.overrides), images, seed)
    picture, packed = Image.fromarray(np.concatenate(list(pixels), axis=1)), io.BytesIO()
    try:
        picture.save(packed, FORMATS[output.suffix.lower()])
    except (OSError, ValueError):
        # Formats have a largest width. What is sampled is not lost for it.
        output, packed = output.with_suffix(".png"), io.BytesIO()
        picture.save(packed, "PNG")
    replace_file(output, packed.getvalue())
    say(str(output))


def picture_file(given: str) -> Path:
    """The file that --output names, with .png where it has no suffix.

    Raises ConfigError where its format is not known or it cannot be written.
    """
    if given == "-":
        raise ConfigError("--output -: pictures are not written to standard output; name a file.")
    output = Path(given)
    if not output.name or output.is_dir():
        raise ConfigError(f"--output {given} is a folder; name a file.")
    if not output.suffix:
        output = output.with_name(f"{output.name}.png")
    if output.suffix.lower() not in FORMATS:
        raise ConfigError(f"--output {given}: the picture's format is one of {', '.join(FORMATS)}.")
    check_writable("--output", output)
    return output


def _taken_for_settings(given: Arguments) -> str:
    if given.words or not given.overrides:
        return ""
    return f"\nTaken for a setting: {', '.join(given.overrides)}. A prompt like that is given after --."


if __name__ == "__main__":
    run_command(main)
