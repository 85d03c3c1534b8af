"""Make pictures: python sample.py "a prompt" --checkpoint PLACE [--images 4] [--seed 0] [--output
picture.png] [key=value ...]"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import ConfigError
from driver.command_line import Arguments, fail, parse_arguments

USAGE = 'python sample.py "a prompt" --checkpoint PLACE [--images 1] [--seed 0] [--output FILE] [key=value]'
FLAGS = {
    "--checkpoint": "folder or URI of a checkpoint, RUN_FOLDER/checkpoints/epoch_…",
    "--config": "configuration file, to sample from the pretrained model instead of a checkpoint",
    "--images": "number of pictures (1)",
    "--seed": "seed of the noise (0)",
    "--output": "file to write (sample.png); several pictures side by side",
}


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 2 an error that the text explains."""
    with fail():
        given = parse_arguments(arguments, USAGE, FLAGS)
        if len(given.words) != 1:
            raise ConfigError(f"One prompt in quotes is needed, {len(given.words)} given.\nUsage: {USAGE}")
        sample(given.words[0], given)
        return 0
    return 2


def sample(prompt: str, given: Arguments) -> None:
    """Sample and write the picture."""
    images, seed = given.whole_number("--images", 1, least=1), given.whole_number("--seed", 0, least=0)
    output = Path(given.flags.get("--output", "sample.png"))
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: the folder {output.parent} does not exist.")
    # torch is imported only after the arguments have been found to be sound.
    from PIL import Image

    from common.trajectory import NoiseKey
    from driver.standalone import choose

    policy = choose(given.flags, given.overrides).load()
    pixels = policy.images(prompt, images, NoiseKey(seed, "sample", 0, 0))
    Image.fromarray(np.concatenate(list(pixels), axis=1)).save(output)
    print(output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
