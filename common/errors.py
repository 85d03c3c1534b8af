"""The errors a person can act on. Each says what was given, what is allowed and how to mend it."""


class PrdpError(Exception):
    """Base of every error this project raises on purpose; its text is meant for a person."""


class ConfigError(PrdpError):
    """A configuration key, value or combination that cannot work."""


class PromptSetError(PrdpError):
    """A prompt file or data set that is missing, empty or malformed."""


class ModelError(PrdpError):
    """A model folder or hub id that is no supported text-to-image pipeline."""


class WeightsError(PrdpError):
    """Weights that are not what their stamp says, or that do not fit the policy."""


class RewardError(PrdpError):
    """A scorer that raised, hung, or answered with something that is not one finite reward per image."""


class RecordingError(PrdpError):
    """A recorded trajectory file that is damaged, foreign, or does not fit this run."""


class CheckpointError(PrdpError):
    """A checkpoint that is torn, missing, or of another run."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are not what was written; one before it may be whole."""


class RunFolderError(PrdpError):
    """A run folder that is in use, finished, unwritable, or holds another configuration."""


class BadNumbersError(PrdpError):
    """Numbers that are not finite: in sampled latents, or in updates, which were skipped again and again."""


class NothingLearnedError(PrdpError):
    """Epoch after epoch in which nothing could be learned, such as by rewards that never differ."""


class StuckError(PrdpError):
    """A wait that passed its limit; the text names what was waited for."""


def no_picture(prompt: str) -> str:
    """What is wrong where latents are not finite, and how to mend it."""
    return (
        f"Sampling {prompt!r} gives latents that are not finite, and no picture. Set model.precision and "
        "model.dtype to float32; where it stays, the weights are broken."
    )
