"""The tracker on a real SQLite store: what is kept, what is refused early, and what a broken store costs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from common.config.services import TrackerSection
from common.places import sqlite_uri
from driver.report.tracker import (
    END_TAG,
    LEFT_ALONE_S,
    LONGEST_MODEL_TAG,
    OpenRun,
    RunEnd,
    Tracker,
    TrackerError,
    call_store,
    flat_params,
    open_tracker,
    read_history,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name has what means something in a URI."""
    folder = tmp_path_factory.mktemp("all") / "runs 50%20 what? #1 & \u00fcn\u00ef;x"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def client(runs: Path) -> MlflowClient:
    return MlflowClient(sqlite_uri(runs / "mlflow.db"))


@pytest.fixture
def tracker(runs: Path) -> Tracker:
    return open_tracker(TrackerSection(), "demo", runs)


def artifact(client: MlflowClient, tracker: Tracker, path: str) -> Path:
    return Path(client.download_artifacts(tracker.run_id, path))


def steps(client: MlflowClient, tracker: Tracker, name: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(tracker.run_id, name)]


def test_everything_lies_in_the_folder_whatever_its_name(runs: Path, tracker: Tracker) -> None:
    assert [item.name for item in runs.parent.iterdir()] == [runs.name]
    assert sorted(item.name for item in runs.iterdir()) == ["mlflow-artifacts", "mlflow.db"]
    assert (runs / "mlflow-artifacts" / tracker.run_id / "artifacts" / "metrics.md").is_file()


def test_configuration_is_kept_whole(client: MlflowClient, tracker: Tracker) -> None:
    config = {"many": {f"key{index}": index for index in range(230)}, "long": "x" * 7000, "off": False}
    config |= {"rewards": {"odd name (1)": {"weight": 0.5, "options": {}}}, "names": ["to_q", "to_k"]}
    tracker.log_config(flat_params(config), "many: 230\n")
    tracker.flush()
    params = client.get_run(tracker.run_id).data.params
    assert len(params) == 230 + 5
    assert (params["many.key7"], params["off"], params["names"]) == ("7", "false", '["to_q", "to_k"]')
    assert params["rewards.odd name _1_.weight"] == "0.5"
    assert params["long"] == "x" * 6000
    assert artifact(client, tracker, "config.yaml").read_text() == "many: 230\n"
    assert tracker.lost_writes == 0


def test_no_text_carries_a_secret(client: MlflowClient, tracker: Tracker) -> None:
    tracker.set_tags({"place": "https://user:hunter2@host/x"})
    tracker.set_description("see https://user:hunter2@host/x")
    tracker.log_text("note.md", "password=hunter2")
    tracker.flush()
    tags = client.get_run(tracker.run_id).data.tags
    assert tags["place"] == "https://(hidden)@host/x"
    assert "hunter2" not in tags["mlflow.note.content"] + artifact(client, tracker, "note.md").read_text()

    def refuse() -> None:
        raise OSError("cannot connect to postgresql://user:hunter2@db/x")

    with pytest.raises(TrackerError, match="@db/x") as caught:
        call_store("Opening", refuse)
    assert "hunter2" not in str(caught.value)


def test_metrics_are_kept_by_epoch(client: MlflowClient, tracker: Tracker, runs: Path) -> None:
    for epoch in range(3):
        tracker.log_metrics({"reward/mean": epoch / 10, "objective/loss": float("nan")}, epoch)
    tracker.flush()
    history = client.get_metric_history(tracker.run_id, "reward/mean")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    tracker.log_metrics({"time/evaluation_s": 1.0}, 2)
    tracker.flush()
    rows = read_history(TrackerSection(), runs, tracker.run_id)
    shown = [(row["epoch"], row["reward/mean"], row["time/evaluation_s"]) for row in rows]
    assert shown == [(0, 0.0, None), (1, 0.1, None), (2, 0.2, 1.0)]
    assert steps(client, tracker, "objective/loss") == [0, 1, 2]
    with pytest.raises(ValueError, match="reward/mean"):
        tracker.log_metrics({"reward/average": 1.0}, 0)


def test_what_is_looked_at_first_sorts_first_and_widths_have_no_charts(
    client: MlflowClient, runs: Path
) -> None:
    """By code, as a page begins, and by letter, as it goes on: numbers stand before letters in both."""
    charts = {"reward/mean": "1 progress/1 reward", "throughput/images_per_s": "1 progress/2 images"}
    tracker = open_tracker(TrackerSection(), "demo", runs, charts=charts)
    metrics = {"alarms/bad_numbers": 0.0, "reward/mean": 0.5, "throughput/images_per_s": 2.0}
    tracker.log_metrics({**metrics, "eval/width95/unseen/reward": 0.1}, 1)
    tracker.flush()
    logged = client.get_run(tracker.run_id).data.metrics
    assert logged == {**metrics, "1 progress/1 reward": 0.5, "1 progress/2 images": 2.0}
    assert sorted(logged)[:2] == sorted(logged, key=str.casefold)[:2] == sorted(charts.values())


def test_an_experiment_opens_as_training_also_where_it_was_there_before(
    client: MlflowClient, runs: Path
) -> None:
    """Unless somebody has given it a kind."""
    for name, tags in (("bare", {}), ("other", {"mlflow.experimentKind": "finetuning"})):
        client.create_experiment(name, tags=tags)
        tracker = open_tracker(TrackerSection(experiment=name), "demo", runs)
        kind = client.get_experiment_by_name(name).tags["mlflow.experimentKind"]
        assert kind == tags.get("mlflow.experimentKind", "custom_model_development")
        assert f"/runs/{tracker.run_id}?workflowType=machine_learning" in tracker.run_url_hint()


def test_images_texts_and_folders_are_kept(client: MlflowClient, tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(b"weights")
    tracker.log_image("unseen prompts", Image.new("RGB", (40, 30), "red"), 5)
    tracker.log_text("notes/summary.md", "# Result")
    tracker.log_folder(tmp_path, "policy")
    names = [Path(found.path).name for found in client.list_artifacts(tracker.run_id, "images")]
    assert len(names) == 2
    assert all(name.startswith("unseen prompts+step+5+") for name in names)
    with Image.open(artifact(client, tracker, "unseen prompts.png")) as image:
        assert image.size == (40, 30)
    assert artifact(client, tracker, "notes/summary.md").read_text() == "# Result"
    assert artifact(client, tracker, "policy/adapter.safetensors").read_bytes() == b"weights"
    assert tracker.lost_writes == 0


def test_a_continued_run_is_the_same_run(client: MlflowClient, tracker: Tracker, runs: Path) -> None:
    tracker.log_config({"run.epochs": "20"}, "epochs: 20")
    tracker.finish(RunEnd.STOPPED)
    resumed = open_tracker(TrackerSection(), "demo", runs, tracker.run_id)
    resumed.log_config({"run.epochs": "40", "run.name": "demo"}, "epochs: 40")
    resumed.flush()
    run = client.get_run(tracker.run_id)
    assert (resumed.run_id, run.info.status) == (tracker.run_id, "RUNNING")
    assert END_TAG not in run.data.tags
    assert run.data.params == {"run.epochs": "20", "run.name": "demo"}
    assert artifact(client, resumed, "config.yaml").read_text() == "epochs: 40"
    assert resumed.lost_writes == 0


@pytest.mark.parametrize(
    ("end", "status"),
    [(RunEnd.STOPPED, "FINISHED"), (RunEnd.CUT_OFF, "KILLED"), (RunEnd.FAILED, "FAILED")],
)
def test_mlflow_says_how_a_run_ended(
    client: MlflowClient, tracker: Tracker, end: RunEnd, status: str
) -> None:
    tracker.finish(end)
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.data.tags[END_TAG]) == (status, end.value[0])


def test_a_lost_run_is_replaced_with_a_warning(runs: Path) -> None:
    warnings: list[str] = []
    tracker = open_tracker(TrackerSection(), "demo", runs, "0" * 32, warnings.append)
    assert tracker.run_id != "0" * 32
    assert len(warnings) == 1
    assert "0" * 32 in warnings[0]


def test_stores_that_cannot_be_used_are_early_errors(
    client: MlflowClient, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    open_tracker(TrackerSection(experiment="old"), "demo", runs)
    client.delete_experiment(client.get_experiment_by_name("old").experiment_id)
    (tmp_path / "a_file").write_text("")
    (tmp_path / "mlflow.db").write_text("this is a letter, not a database")
    for section, folder, text in (
        (TrackerSection(experiment="old"), runs, "active"),
        (TrackerSection(uri="http://127.0.0.1:9"), tmp_path, r"http://127\.0\.0\.1:9"),
        (TrackerSection(), tmp_path / "a_file", "a_file"),
        (TrackerSection(), tmp_path, "not a database"),
    ):
        with pytest.raises(TrackerError, match=text):
            open_tracker(section, "demo", folder)
    assert (tmp_path / "mlflow.db").read_text() == "this is a letter, not a database"


def test_a_store_that_stops_answering_costs_little_and_is_said_once(
    client: MlflowClient, tracker: Tracker
) -> None:
    warnings: list[str] = []
    now = [0.0]
    run = OpenRun(client, "", "0", tracker.run_id)
    patient = Tracker(run, warnings.append, lambda: now[0])

    def log(epoch: int) -> None:
        patient.log_metrics({"reward/mean": 0.1}, epoch)
        patient.flush()

    client.delete_run(tracker.run_id)
    log(1)
    log(2)
    now[0] = LEFT_ALONE_S
    log(3)
    assert (patient.lost_writes, len(warnings)) == (3, 1)
    assert "deleted" in warnings[0]
    client.restore_run(tracker.run_id)
    log(4)
    assert patient.lost_writes == 4
    now[0] = 2 * LEFT_ALONE_S
    log(5)
    assert steps(client, tracker, "reward/mean") == [5]
    assert "4 writes were lost" in warnings[1]


def test_a_store_slower_than_the_run_gets_so_many_writes_and_no_more(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("driver.report.tracker.MOST_WAITING", 3)
    answers = threading.Event()
    tracker._writer.submit(answers.wait, 20.0)
    for epoch in range(5):
        tracker.log_metrics({"reward/mean": 0.1}, epoch)
    assert tracker.lost_writes == 2
    answers.set()
    tracker.flush()
    tracker.log_metrics({"reward/mean": 0.1}, 5)
    tracker.finish(RunEnd.FINISHED)
    assert tracker.lost_writes == 2


@pytest.mark.parametrize("same_again", [True, False])
def test_an_epoch_that_comes_again_the_same_is_logged_once(
    client: MlflowClient, tracker: Tracker, runs: Path, same_again: bool
) -> None:
    """A run that was killed goes on from a checkpoint: what came after that is in the store already."""
    tracker.log_metrics({"policy/version": 2.0, "reward/mean": 0.5}, 2)
    tracker.log_metrics({"time/evaluation_s": 3.0, "eval/unseen/reward": 0.1}, 1)
    tracker.flush()
    again = open_tracker(TrackerSection(), "demo", runs, tracker.run_id, same_again=same_again)
    for epoch in (2, 3):
        again.log_metrics({"policy/version": float(epoch), "reward/mean": 0.75}, epoch)
        again.log_metrics({"time/evaluation_s": 4.0, "eval/unseen/reward": 0.1}, epoch)
    again.flush()
    history = client.get_metric_history(tracker.run_id, "reward/mean")
    expected = [(2, 0.5), (3, 0.75)] if same_again else [(2, 0.5), (2, 0.75), (3, 0.75)]
    assert [(metric.step, metric.value) for metric in history] == expected
    assert steps(client, tracker, "eval/unseen/reward") == [1, 2, 3]


def test_a_model_gets_a_new_version_each_time(client: MlflowClient, tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    tracker.log_folder(tmp_path, "checkpoint/policy")
    tags = {"config": "x" * (LONGEST_MODEL_TAG + 1)}
    for number in (1, 2):
        address = tracker.register("my model", "checkpoint/policy", "how", tags)
        assert address == f"models:/my model/{number}"
    found = client.get_model_version("my model", "1")
    assert (found.run_id, found.description) == (tracker.run_id, "how")
    assert len(found.tags["config"]) == LONGEST_MODEL_TAG
    assert tracker.lost_writes == 0
