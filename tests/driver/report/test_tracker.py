"""The tracker on a real SQLite store: what is kept, what is refused early, and what a broken store costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from common.config.services import TrackerSection
from driver.report.tracker import (
    LONGEST_NOTE,
    PATIENCE_S,
    WAITS_S,
    RunEnd,
    Tracker,
    flat_params,
    open_tracker,
)
from driver.report.tracker_registry import LONGEST_TAG, ModelVersion, policy_tags
from driver.report.tracker_store import OpenRun, Store, TrackerError, open_client
from driver.run.reward_versions import VersionRecord

Open = Callable[..., Tracker]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name needs quoting in a URI."""
    return tmp_path_factory.mktemp("all runs")


@pytest.fixture(scope="module")
def client(runs: Path):
    """MLflow's own client on the same store."""
    return open_client(Store(f"sqlite:///{runs / 'mlflow.db'}", ""))


@pytest.fixture
def tracker(runs: Path) -> Tracker:
    return open_tracker(TrackerSection(), "demo", runs)


def artifact(client, tracker: Tracker, path: str) -> Path:
    return Path(client.download_artifacts(tracker.run_id, path))


def test_opening_is_quiet_and_importing_is_quick(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from driver.report.tracker import RunEnd, open_tracker\n"
        "from common.config.services import TrackerSection\n"
        "assert 'mlflow' not in sys.modules\n"
        f"tracker = open_tracker(TrackerSection(), 'demo', Path({str(tmp_path)!r}))\n"
        "tracker.log_metrics({'reward/mean': 0.5}, 1)\n"
        "tracker.finish(RunEnd.FINISHED)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert (tmp_path / "mlflow.db").exists()


def test_the_run_page_says_what_and_where(client, tracker: Tracker, runs: Path) -> None:
    run = client.get_run(tracker.run_id)
    assert run.info.run_name == "demo"
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert run.info.artifact_uri.startswith((runs / "mlflow-artifacts").as_uri())
    assert client.get_experiment(run.info.experiment_id).name == "prdp"
    assert "reward/mean" in artifact(client, tracker, "metrics.md").read_text()


def test_configuration_is_kept_whole(client, tracker: Tracker) -> None:
    config = {
        "many": {f"key{index}": index for index in range(230)},
        "long": "x" * 7000,
        "empty": "",
        "off": False,
    }
    config |= {"rewards": {"odd name (1)": {"weight": 0.5, "options": {}}}, "names": ["to_q", "to_k"]}
    tracker.log_config(flat_params(config), "many: 230\n")
    params = client.get_run(tracker.run_id).data.params
    assert len(params) == 230 + 6
    assert params["many.key7"] == "7"
    assert (params["empty"], params["off"], params["names"]) == ("", "false", '["to_q", "to_k"]')
    assert params["rewards.odd name _1_.weight"] == "0.5"
    assert params["long"] == "x" * 6000
    assert artifact(client, tracker, "config.yaml").read_text() == "many: 230\n"
    assert tracker.lost_writes == 0


def test_metrics_are_kept_by_epoch(client, tracker: Tracker) -> None:
    for epoch in range(3):
        tracker.log_metrics(
            {"reward/mean": epoch / 10, "eval/unseen/gold": 1.0, "objective/loss": float("nan")}, epoch
        )
    history = client.get_metric_history(tracker.run_id, "reward/mean")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert len(client.get_metric_history(tracker.run_id, "objective/loss")) == 3


def test_an_undefined_metric_is_refused(tracker: Tracker) -> None:
    with pytest.raises(ValueError, match="reward/mean"):
        tracker.log_metrics({"reward/average": 1.0}, 0)


def test_pictures_plots_texts_and_folders_are_kept(client, tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(b"weights")
    tracker.log_picture("unseen prompts", Image.new("RGB", (40, 30), "red"), 5)
    Image.new("RGB", (20, 10)).save(tmp_path / "curve.png")
    tracker.log_file(tmp_path / "curve.png", "plots")
    tracker.log_file(tmp_path / "curve.png")
    tracker.log_text("notes/summary.md", "# Result")
    tracker.log_folder(tmp_path, "policy")
    names = {Path(found.path).name for found in client.list_artifacts(tracker.run_id, "images")}
    assert len(names) == 2
    assert all(name.startswith("unseen prompts+step+5+") for name in names)
    assert client.get_run(tracker.run_id).data.tags["mlflow.loggedImages"] == "True"
    with Image.open(artifact(client, tracker, "plots/curve.png")) as plot:
        assert plot.size == (20, 10)
    assert artifact(client, tracker, "curve.png").is_file()
    assert artifact(client, tracker, "notes/summary.md").read_text() == "# Result"
    assert artifact(client, tracker, "policy/adapter.safetensors").read_bytes() == b"weights"
    assert tracker.lost_writes == 0


def test_a_long_description_is_cut_visibly(client, tracker: Tracker) -> None:
    tracker.set_description("x" * 9000)
    note = client.get_run(tracker.run_id).data.tags["mlflow.note.content"]
    assert len(note) == LONGEST_NOTE
    assert note.endswith("(cut)")


@pytest.mark.parametrize("end", list(RunEnd))
def test_the_run_ends_as_told(client, tracker: Tracker, end: RunEnd) -> None:
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    tracker.finish(end)
    assert client.get_run(tracker.run_id).info.status == end.value


def test_a_continued_run_is_the_same_run(client, tracker: Tracker, runs: Path) -> None:
    tracker.log_config({"run.epochs": "20", "run.seed": "0"}, "epochs: 20")
    tracker.finish(RunEnd.STOPPED)
    resumed = open_tracker(TrackerSection(), "demo", runs, tracker.run_id)
    resumed.log_config({"run.epochs": "40", "run.seed": "0", "run.name": "demo"}, "epochs: 40")
    run = client.get_run(tracker.run_id)
    assert resumed.run_id == tracker.run_id
    assert run.info.status == "RUNNING"
    assert run.data.params == {"run.epochs": "20", "run.seed": "0", "run.name": "demo"}
    assert run.data.tags["changed/run.epochs"] == "20 -> 40"
    assert "changed/run.seed" not in run.data.tags
    assert artifact(client, resumed, "config.yaml").read_text() == "epochs: 40"
    assert resumed.lost_writes == 0


def test_a_lost_run_is_replaced_with_a_warning(runs: Path) -> None:
    warnings: list[str] = []
    tracker = open_tracker(TrackerSection(), "demo", runs, "0" * 32, warnings.append)
    assert tracker.run_id != "0" * 32
    assert len(warnings) == 1
    assert "0" * 32 in warnings[0]


def test_a_deleted_experiment_is_an_early_error(client, runs: Path) -> None:
    open_tracker(TrackerSection(experiment="old"), "demo", runs)
    client.delete_experiment(client.get_experiment_by_name("old").experiment_id)
    with pytest.raises(TrackerError, match="experiments restore"):
        open_tracker(TrackerSection(experiment="old"), "demo", runs)


def test_a_server_that_is_not_there_is_an_early_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackerError, match=r"http://127\.0\.0\.1:9"):
        open_tracker(TrackerSection(uri="http://127.0.0.1:9"), "demo", tmp_path)


def test_a_foreign_file_is_an_early_error_and_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is a letter, not a database")
    with pytest.raises(TrackerError, match="no SQLite database"):
        open_tracker(TrackerSection(), "demo", tmp_path)
    assert (tmp_path / "mlflow.db").read_text() == "this is a letter, not a database"


def test_a_folder_that_cannot_be_written_is_an_early_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(TrackerError, match="cannot be written"):
        open_tracker(TrackerSection(), "demo", tmp_path / "runs")


def test_a_store_that_stops_answering_costs_little_and_is_told_once(client, tracker: Tracker) -> None:
    warnings: list[str] = []
    waits: list[float] = []
    now = [0.0]
    run = client.get_run(tracker.run_id)
    opened = OpenRun(client, Store("", ""), run.info.experiment_id, tracker.run_id)
    patient = Tracker(opened, warnings.append, waits.append, lambda: now[0])
    client.delete_run(tracker.run_id)
    patient.log_metrics({"reward/mean": 0.1}, 1)
    assert waits == [0.0, *WAITS_S]
    patient.log_metrics({"reward/mean": 0.2}, 2)
    now[0] = PATIENCE_S
    patient.log_metrics({"reward/mean": 0.3}, 3)
    assert (patient.lost_writes, len(warnings)) == (3, 1)
    assert "deleted" in warnings[0]
    assert waits == [0.0, *WAITS_S, 0.0]
    client.restore_run(tracker.run_id)
    now[0] = 2 * PATIENCE_S
    patient.log_metrics({"reward/mean": 0.4}, 4)
    assert [point.step for point in client.get_metric_history(tracker.run_id, "reward/mean")] == [4]
    assert "3 writes were lost" in warnings[1]


def test_the_hint_opens_the_store(tracker: Tracker, runs: Path) -> None:
    command, *arguments = tracker.run_url_hint().split(" ", 1)
    assert Path(command).resolve().parent == Path(sys.executable).parent.resolve()
    assert arguments == [f"ui --backend-store-uri 'sqlite:///{runs}/mlflow.db'"]


def test_the_hint_of_a_server_is_the_runs_address(client, tracker: Tracker) -> None:
    served = Tracker(OpenRun(client, Store("http://host:5000/", ""), "3", tracker.run_id), print)
    assert served.run_url_hint() == f"http://host:5000/#/experiments/3/runs/{tracker.run_id}"


def test_an_epoch_that_is_done_again_is_logged_once(client, tracker: Tracker, runs: Path) -> None:
    """A run that was killed goes on from a checkpoint: what came after that is in the store already."""
    for epoch in (1, 2):
        tracker.log_metrics({"policy/version": float(epoch), "reward/mean": 0.5}, epoch)
    tracker.log_metrics({"time/evaluation_s": 3.0, "eval/unseen/reward": 0.1}, 1)
    again = open_tracker(TrackerSection(), "demo", runs, tracker.run_id)
    for epoch in (2, 3):
        again.log_metrics({"policy/version": float(epoch), "reward/mean": 0.5}, epoch)
        again.log_metrics({"time/evaluation_s": 4.0, "eval/unseen/reward": 0.1}, epoch)
    steps = [metric.step for metric in client.get_metric_history(tracker.run_id, "reward/mean")]
    assert steps == [1, 2, 3]
    steps = [metric.step for metric in client.get_metric_history(tracker.run_id, "eval/unseen/reward")]
    assert steps == [1, 2, 3]


def test_with_other_samples_an_epoch_that_is_done_again_is_logged_again(
    client, tracker: Tracker, runs: Path
) -> None:
    tracker.log_metrics({"policy/version": 2.0, "reward/mean": 0.5}, 2)
    again = open_tracker(TrackerSection(), "demo", runs, tracker.run_id, same_again=False)
    again.log_metrics({"policy/version": 2.0, "reward/mean": 0.75}, 2)
    values = [metric.value for metric in client.get_metric_history(tracker.run_id, "reward/mean")]
    assert values == [0.5, 0.75]
    assert client.get_run(tracker.run_id).data.metrics["reward/mean"] == 0.75


def test_a_model_gets_a_new_version_each_time(client, tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    tracker.log_folder(tmp_path, "checkpoint/policy")
    model = ModelVersion("my model", "checkpoint/policy", "how", {"config": "x" * (LONGEST_TAG + 1)})
    assert tracker.register(model) == ("models:/my model/1",)
    assert tracker.register(model) == ("models:/my model/2",)
    found = client.get_model_version("my model", "1")
    assert (found.run_id, found.description) == (tracker.run_id, "how")
    assert len(found.tags["config"]) == LONGEST_TAG
    assert tracker.lost_writes == 0


def test_tags_say_what_made_a_policy() -> None:
    versions = [
        VersionRecord(0, 0, "clip", 1, "1", "abcdef0123456789"),
        VersionRecord(7, 2, "clip", 2, "2", ""),
    ]
    assert policy_tags("demo", 9, versions, "run: {}\n") == {
        "run": "demo",
        "epochs": "9",
        "config": "run: {}\n",
        "reward/clip": "1 (abcdef012345) from epoch 0; 2 from epoch 7",
    }


@pytest.mark.parametrize("wrong", [{"register_as": "a/b"}, {"register_as": "a", "save_checkpoint": False}])
def test_a_model_that_cannot_be_registered_is_refused_early(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"leave out|needs save_checkpoint"):
        TrackerSection.model_validate(wrong)
