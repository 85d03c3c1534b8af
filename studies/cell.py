"""One cell of a study: one configuration trained in this process, without Ray.

The parts are those of a run: Actor, RewardSum, Learner, and the driver's tasks and evaluations. What the
driver's loop adds to them (processes, recovery, display) is left out, and the bits are the same: the study
`same_bits` shows it.
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rich.progress import Progress

from actors.actor import Actor
from common.config.schema import Config
from common.model.loading import load_policy
from common.model.weights import Weights
from common.trajectory import ScoredGroup
from driver.report.evaluation import Evaluation
from driver.run.prompts import PromptSets, PromptStream, choose_prompts, open_prompts, training_tasks
from driver.standalone import LoadedPolicy, measure
from learner.build import build_learner, groups_in_a_wave
from learner.learner import Learner
from learner.objectives import AnyObjective
from learner.objectives.history import RewardHistory
from learner.objectives.registry import build_objective
from learner.parallel import Single
from learner.report import UpdateReport
from reward_service.client.local import LocalRewards, local_rewards


@dataclass(frozen=True)
class Measurement:
    """What is known after so many epochs.

    queries: images scored for training so far. passes: of one latent through the network for training so far,
    forward 1 and backward 2, those of actor and reference included. reports: of the updates since the
    measurement before. seconds: of the processor so far, evaluations included.
    """

    epoch: int
    queries: int
    passes: int
    evaluation: Evaluation
    reports: tuple[UpdateReport, ...]
    seconds: float


@dataclass(frozen=True)
class Cell:
    """The parts of a run in one process. sampler: the policy that the actor loads weights into."""

    config: Config
    sampler: LoadedPolicy
    actor: Actor
    learner: Learner
    objective: AnyObjective
    rewards: LocalRewards
    stream: PromptStream
    prompt_sets: PromptSets

    @staticmethod
    def of(config: Config, run_id: str = "cell") -> Cell:
        """Everything loaded. Raises PrdpError."""
        policy, steps = load_policy(config)
        learner = build_learner(config, run_id, Single())
        stream = PromptStream(open_prompts(config.prompts.train), config.run.seed)
        return Cell(
            config=config,
            sampler=LoadedPolicy(policy, steps, learner.publish().stamp),
            actor=Actor.of(policy, steps),
            learner=learner,
            objective=build_objective(config.objective, math.prod(policy.family.latent_shape)),
            rewards=local_rewards(config.rewards, config.gold, config.reward_service),
            stream=stream,
            prompt_sets=choose_prompts(config, stream, open_prompts(config.prompts.unseen)),
        )

    def train(self) -> Iterator[Measurement]:
        """Algorithm 1; measured before it, after every evaluation.every_epochs epochs and after the last."""
        config, passes, reports = self.config, 0, list[UpdateReport]()
        began, history, now = time.process_time(), RewardHistory(), self._published()
        # Epoch e is sampled with the weights after epoch e - max_staleness, or with the first.
        behaviour = deque([now], maxlen=config.data.max_staleness + 1)
        for epoch in range(config.run.epochs + 1):
            is_last = epoch == config.run.epochs
            if is_last or epoch % config.evaluation.every_epochs == 0:
                evaluation, spent = self._evaluate(epoch, now), time.process_time() - began
                queries = epoch * config.trajectories_per_epoch
                yield Measurement(epoch, queries, passes, evaluation, tuple(reports), spent)
                reports = []
            if is_last:
                return
            groups, sampled = self._sample(epoch, behaviour[0])
            groups, history = self._with_advantages(groups, history)
            learned = self._learn(groups)
            passes += sampled + sum(report.passes for report in learned)
            reports += learned
            now = self._published()
            # Offline, the first weights stay: a recording of the pretrained model holds what the same tasks
            # give with its weights.
            if config.data.mode == "online":
                behaviour.append(now)

    def _sample(self, epoch: int, weights: Weights) -> tuple[list[ScoredGroup], int]:
        """The epoch's groups, and the passes that they took."""
        needs, passes = self.objective.needs, 0
        groups = []
        for task in training_tasks(
            self.config, self.stream, epoch, weights.stamp, needs.reference, needs.steps
        ):
            trajectory, images, report = self.actor.sample(task, weights)
            passes += report.passes
            groups.append(ScoredGroup(trajectory, self.rewards.score_group(task.prompt, images)))
        return groups, passes

    def _with_advantages(
        self, groups: list[ScoredGroup], history: RewardHistory
    ) -> tuple[list[ScoredGroup], RewardHistory]:
        scores = [(group.trajectory.prompt, group.score.rewards) for group in groups]
        advantages, history = self.objective.advantages(scores, history)
        return [
            replace(group, advantages=of_group) for group, of_group in zip(groups, advantages, strict=True)
        ], history

    def _learn(self, groups: list[ScoredGroup]) -> list[UpdateReport]:
        size = groups_in_a_wave(self.config)
        for start in range(0, len(groups), size):
            self.learner.accumulate(groups[start : start + size])
        reports = [self.learner.finish_update()]
        for _ in range(1, self.config.objective.updates_per_epoch):
            reports.append(self.learner.repeat_update())
        self.learner.end_epoch()
        return reports

    def _published(self) -> Weights:
        """A copy, because on a CPU what is published is the live tensors' memory."""
        return copy.deepcopy(self.learner.publish())

    def _evaluate(self, epoch: int, weights: Weights) -> Evaluation:
        self.actor.load(weights, weights.stamp)
        loaded = replace(self.sampler, stamp=weights.stamp, epoch=epoch)
        return measure(self.config, loaded, self.rewards, self.prompt_sets, Progress(disable=True)).evaluation
