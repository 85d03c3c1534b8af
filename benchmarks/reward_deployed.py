"""The quickstart on rewards that are deployed separately and restarted meanwhile, against embedded ones."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import ray

from benchmarks.machine import Machine
from benchmarks.options import QUICKSTART, at_least_one
from benchmarks.report import RESULTS, Result, Verdict
from benchmarks.reward_cluster import ROOT, RewardCluster, ServedApp, reward_cluster
from common.config.load import load_config
from common.config.services import RewardSpec
from common.errors import PrdpError, RewardError
from driver.run.checkpoints import checkpoint_folder
from driver.run.evaluations import load_evaluations

ABOUT = (
    "Train the quickstart twice: with embedded rewards, and with the same rewards as Serve applications of a "
    "cluster of their own, the trained one asked by handle and the gold one over HTTP; both are taken down "
    "and put up again in the middle. Weights and evaluations must be the same to the bit."
)
RUN_LIMIT_S = 3600.0
AWAY_S = 5.0
_WEIGHTS = "trainable.safetensors"
NOTES = (
    f"The rewards are away for {AWAY_S:g} s and the time they need to start again: the run's groups wait. "
    "Seconds are of the whole command, from its start to its exit.",
)


@dataclass(frozen=True)
class Plan:
    """What was asked for. overrides: of the quickstart, key=value. embedded: run.folder of a run that is done
    already with the same settings; empty = train it."""

    epochs: int
    overrides: tuple[str, ...]
    embedded: str

    def arguments(self, folder: Path, *more: str) -> list[str]:
        """Of train.py, for a run in this folder."""
        given = [f"run.folder={folder}", f"run.epochs={self.epochs}", "display.mode=lines", *self.overrides]
        return [str(QUICKSTART), *given, *more]


@dataclass(frozen=True)
class Trained:
    """A finished run: digest of its weights, scores of its evaluations, seconds (0: trained before)."""

    weights: str
    scores: Mapping[str, np.ndarray]
    seconds: float


class Restart:
    """Takes all applications down once, after so many epochs, and puts them up again."""

    def __init__(self, cluster: RewardCluster, apps: Sequence[ServedApp], epoch: int, epochs: int) -> None:
        self._cluster = cluster
        self._apps = apps
        self._sign = f"epoch {epoch}/{epochs} done"
        self.done = False

    def __call__(self, log: str) -> None:
        """Look at the log so far."""
        if self.done or self._sign not in log:
            return
        self.done = True
        self._cluster.remove_all()
        time.sleep(AWAY_S)
        self._cluster.deploy(*self._apps)
        self._cluster.wait_running()


def train(arguments: Sequence[str], folder: Path, watch: Callable[[str], None]) -> float:
    """Run train.py; `watch` is called with its log now and then. Returns its seconds. Raises RewardError."""
    log, started = folder / "train.log", time.monotonic()
    with (
        log.open("wb") as file,
        _ended(
            subprocess.Popen([sys.executable, "train.py", *arguments], cwd=ROOT, stdout=file, stderr=file)
        ) as run,
    ):
        while run.poll() is None:
            if time.monotonic() - started > RUN_LIMIT_S:
                raise RewardError(f"The run is not done after {RUN_LIMIT_S:g} s: {_end_of(log)}")
            watch(log.read_text())
            time.sleep(0.2)
    if run.returncode:
        raise RewardError(f"The run ended with status {run.returncode}: {_end_of(log)}")
    return time.monotonic() - started


def embedded(plan: Plan, folder: Path) -> Trained:
    """The quickstart as it is."""
    if plan.embedded:
        return _read(plan, Path(plan.embedded), 0.0)
    seconds = train(plan.arguments(folder), folder, lambda _: None)
    return _read(plan, folder, seconds)


def deployed(plan: Plan, folder: Path) -> Trained:
    """The same on applications that the run neither starts nor ends."""
    config = load_config(QUICKSTART)
    specs = {"proxy": config.rewards["proxy"], "gold": config.gold["gold"]}
    apps = [_app(name, spec) for name, spec in specs.items()]
    with reward_cluster(folder) as cluster:
        cluster.deploy(*apps)
        cluster.wait_running()
        more = (
            f"ray.address={ray.get_runtime_context().gcs_address}",
            "rewards={proxy: {app: proxy}}",
            f"gold={{gold: {{url: '{cluster.url('gold')}'}}}}",
        )
        restart = Restart(cluster, apps, max(1, plan.epochs // 2), plan.epochs)
        seconds = train(plan.arguments(folder, *more), folder, restart)
        if not restart.done:
            raise RewardError("The run ended before its rewards were restarted.")
    return _read(plan, folder, seconds)


def measure(plan: Plan, command: str) -> Result:
    """Train both and compare them."""
    machine = Machine.here()
    with TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in ("embedded", "deployed")}
        for folder in folders.values():
            folder.mkdir()
        own, far = embedded(plan, folders["embedded"]), deployed(plan, folders["deployed"])
    same = {name: bool(np.array_equal(own.scores[name], far.scores[name])) for name in own.scores}
    return Result(
        name="reward_deployed",
        command=command,
        settings=asdict(plan),
        machine=machine,
        verdicts=(
            Verdict(
                "weights after the last epoch",
                "the same" if own.weights == far.weights else "others",
                "the same bits",
                own.weights == far.weights,
                f"SHA-256 {own.weights[:12]} embedded, {far.weights[:12]} deployed",
            ),
            Verdict(
                "scores of all evaluations, proxy and gold",
                f"{sum(same.values())} of {len(same)} the same",
                "the same bits",
                all(same.values()) and own.scores.keys() == far.scores.keys(),
                f"{sum(scores.size for scores in own.scores.values())} numbers",
            ),
        ),
        figures={
            "embedded": f"{own.seconds:.0f} s" if own.seconds else "trained before",
            "deployed, restarted": f"{far.seconds:.0f} s",
        },
        raw={"embedded_s": own.seconds, "deployed_s": far.seconds, "same": same},
        notes=NOTES,
    )


def _app(name: str, spec: object) -> ServedApp:
    if not isinstance(spec, RewardSpec):
        raise RewardError(f"The quickstart's reward {name!r} is not embedded.")
    options = {**spec.options, "path": str((ROOT / str(spec.options["path"])).resolve())}
    return ServedApp(name, {"scorer": spec.scorer, "options": options}, http=name == "gold")


def _read(plan: Plan, folder: Path, seconds: float) -> Trained:
    run_folder = load_config(QUICKSTART, plan.arguments(folder)[1:]).run_folder
    weights = (checkpoint_folder(run_folder, plan.epochs) / _WEIGHTS).read_bytes()
    scores = {
        f"epoch {evaluation.epoch}, {own.name}, {name}": values
        for evaluation in load_evaluations(run_folder)
        for own in evaluation.sets
        for name, values in own.scores.items()
    }
    return Trained(hashlib.sha256(weights).hexdigest(), scores, seconds)


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _end_of(log: Path) -> str:
    return log.read_text()[-2000:]


def main(arguments: Sequence[str]) -> int:
    """The command line. Returns the exit status: 0 all met, 1 not, 2 a text explains why not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_deployed", description=ABOUT)
    whole = load_config(QUICKSTART).run.epochs
    parser.add_argument("--epochs", type=at_least_one, default=whole, help="(default: %(default)s, all)")
    parser.add_argument(
        "--name", default="reward_deployed", help="of the result files (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)"
    )
    parser.add_argument(
        "--embedded",
        default="",
        help="run.folder of a finished run with embedded rewards (default: train it)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the quickstart")
    given = parser.parse_args(arguments)
    try:
        plan = Plan(given.epochs, tuple(given.overrides), given.embedded)
        result = measure(plan, " ".join(["python -m benchmarks.reward_deployed", *arguments]))
    except PrdpError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    replace(result, name=given.name).publish(given.out)
    return 0 if all(verdict.met for verdict in result.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
