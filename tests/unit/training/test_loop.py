import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from limner.config import RunConfig, TrainConfig, to_json
from limner.data.loader import Batch
from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, DataError, LimnerError, ModelError, TrainingError
from limner.evaluation.suite import evaluate
from limner.files import write_json
from limner.model.clip import create
from limner.objectives.objective import Trainee
from limner.recipes import digits
from limner.run import RunDirectory
from limner.store.store import load
from limner.training import guard, log
from limner.training import step as step_module
from limner.training.loop import train
from limner.training.prepare import settled
from limner.training.step import Step


@pytest.fixture
def config(folder_of_pairs: Path, tmp_path: Path) -> RunConfig:
    """Ten steps of five epochs."""
    return dataclasses.replace(
        digits(),
        data=str(folder_of_pairs),
        test=str(folder_of_pairs),
        out=tmp_path / "run",
        train=TrainConfig(batch_size=20, epochs=5.0, precision="fp32"),
    )


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send Ctrl-C in the middle of a step."""
    plain, done = Step.__call__, 0

    def step(self: Step, batch: Batch, number: int) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, batch, number)

    monkeypatch.setattr(Step, "__call__", step)


def test_a_run_directory(config: RunConfig):
    run = RunDirectory(train(config))
    assert run.read_config() == settled(config)
    assert [line["step"] for line in run.read_metrics()] == [10]
    (line,) = run.read_metrics()
    assert {
        "loss",
        "accuracy",
        "grad_norm",
        "grad_norm_image",
        "grad_norm_text",
        "logit_scale",
        "lr",
        "pairs_per_second",
    } <= set(line)
    assert line["pairs"] == 200 and line["batch"] == 20
    data = json.loads(run.data.read_text())
    assert data["pairs"] == 40 and data["unreadable"] == {} and len(data["fingerprint"]) == 64
    assert list(run.tensorboard.iterdir())
    environment = json.loads((run.path / "env.json").read_text())
    assert environment["torch"] == torch.__version__
    assert load(run.path).fingerprint


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_and_continued_run_ends_with_the_same_bits(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str
):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
    whole = load_file(train(dataclasses.replace(config, out=tmp_path / "whole")) / "model" / "model.safetensors")
    for stop in (3, 4):
        stop_after(stop, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            train(config, resume=stop > 3)
        monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000003.safetensors",
        "step-00000007.safetensors",
    ]
    parts = load_file(train(config, resume=True) / "model" / "model.safetensors")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [line["step"] for line in RunDirectory(tmp_path / "run").read_metrics()] == [3, 7, 10]


def test_signals_are_given_back(config: RunConfig):
    before = signal.getsignal(signal.SIGINT)
    train(config)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_outside_the_main_thread(config: RunConfig):
    done: list[Path] = []
    thread = threading.Thread(target=lambda: done.append(train(config)))
    thread.start()
    thread.join()
    assert done == [config.out]


def test_a_run_is_not_overwritten(config: RunConfig):
    train(config)
    with pytest.raises(ConfigError, match="limner resume"):
        train(config)


def test_other_data_is_refused(config: RunConfig, folder_of_pairs: Path, monkeypatch: pytest.MonkeyPatch):
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    (folder_of_pairs / "05.txt").write_text("other words")
    with pytest.raises(TrainingError, match="fingerprint"):
        train(config, resume=True)


def test_a_checkpoint_of_another_architecture_is_refused(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    with pytest.raises(ModelError, match=r"image\.class_embedding is missing"):
        train(dataclasses.replace(config, model="ViT-mini"), resume=True)


@pytest.mark.parametrize(("tower", "parameter"), [("image", "image.conv2.weight"), ("text", "text.norm.bias")])
def test_a_non_finite_loss_names_step_and_tower(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tower: str, parameter: str
):
    plain, done = Step.__call__, 0

    def spoiled(self: Step, batch: Batch, number: int) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == 4:
            with torch.no_grad():
                dict(self.guard.model.named_parameters())[parameter][0] = float("nan")
        return plain(self, batch, number)

    monkeypatch.setattr(Step, "__call__", spoiled)
    with pytest.raises(
        TrainingError, match=f"step 3 must be finite.*the weights of the {tower} encoder, {parameter}"
    ) as caught:
        train(config)
    assert caught.value.exit_code == 1


def test_unreadable_pictures_are_counted_in_the_run(config: RunConfig, folder_of_pairs: Path):
    (folder_of_pairs / "05.png").write_bytes(b"not a picture")
    run = RunDirectory(train(config))
    assert json.loads(run.data.read_text())["unreadable"] == {"05.png": "13 bytes of another format"}


def test_captions_over_the_context_are_cut_and_counted(config: RunConfig, folder_of_pairs: Path):
    (folder_of_pairs / "05.txt").write_text("word " * 200)
    run = RunDirectory(train(config))
    assert json.loads(run.data.read_text())["captions_cut"] == 5  # once an epoch


def test_pairs_are_kept_back_without_a_test_set(config: RunConfig):
    run = RunDirectory(train(dataclasses.replace(config, test=None, holdout=0.2)))
    assert 0 < json.loads(run.data.read_text())["pairs"] < 40


def test_a_given_tokenizer_is_used(config: RunConfig, tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "tokenizer.json")
    model = load(train(dataclasses.replace(config, tokenizer=str(tmp_path / "tokenizer.json"))))
    assert model.tokenizer is not None and model.tokenizer.to_json() == tokenizer.to_json()


FULL_DISK = """
import resource, sys
from limner.cli.command import main
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
main(sys.argv[1:])
"""


def test_a_full_disk_while_saving_loses_nothing(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert config.out is not None
    (before,) = (config.out / "checkpoints").iterdir()
    content = before.read_bytes()
    assert len(content) > 400_000
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "resume", str(config.out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "must be written whole" in done.stderr and "Traceback" not in done.stderr
    assert list((config.out / "checkpoints").iterdir()) == [before] and before.read_bytes() == content
    train(config, resume=True)


def test_ctrl_c_on_the_command_line(config: RunConfig, tmp_path: Path):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=5000.0))
    assert config.out is not None
    write_json(config.out / "config.json", to_json(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "limner", "resume", str(config.out)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not RunDirectory(config.out).read_metrics() and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        assert RunDirectory(config.out).read_metrics(), "no step in a minute"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Continue with: limner resume" in error and "Traceback" not in error
    assert len(list((config.out / "checkpoints").glob("*.safetensors"))) == 1


def test_checkpoints_hold_everything_by_name(config: RunConfig):
    run = RunDirectory(train(with_settings(config, ema_decay=0.9)))
    checkpoint = load_file(max(run.checkpoints.iterdir()))
    model = create(run.read_config().model, tokenizer=Tokenizer.load(run.tokenizer))
    state, trained = model.state_dict(), [name for name, _ in model.named_parameters()]
    expected = {f"model.{name}": tensor for name, tensor in state.items()}
    expected |= {f"{kind}.{name}": state[name] for kind in ("exp_avg", "exp_avg_sq", "ema") for name in trained}
    assert checkpoint.keys() == expected.keys()
    assert all(checkpoint[name].shape == tensor.shape for name, tensor in expected.items())
    assert all(checkpoint[name].isfinite().all() for name in expected)
    written = load_file(run.model / "model.safetensors")
    assert torch.equal(checkpoint["model.log_logit_scale"], written["logit_scale"])
    assert not torch.equal(checkpoint["ema.log_logit_scale"], written["logit_scale"])
    assert checkpoint["exp_avg_sq.text.projection.weight"].min() >= 0


def test_memory_is_measured():
    assert 0.05 < log.peak_memory_gb() < 100


def test_nothing_is_written_before_the_settings_are_known_to_work(config: RunConfig, tmp_path: Path):
    wrong = [
        dataclasses.replace(config, train=TrainConfig(batch_size=41, epochs=1.0)),
        dataclasses.replace(config, model="RN-nono"),
        dataclasses.replace(config, test=str(tmp_path / "none")),
    ]
    for each in wrong:
        with pytest.raises(LimnerError):
            train(each)
        assert each.out is not None and not each.out.exists()


def test_a_damaged_checkpoint_is_passed_over(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for stop, resume in ((3, False), (4, True)):
        stop_after(stop, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            train(config, resume=resume)
        monkeypatch.undo()
    assert config.out is not None
    newest = max((config.out / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-10])
    capsys.readouterr()
    train(config, resume=True)
    error = capsys.readouterr().err
    assert "step-00000007.safetensors is damaged" in error and "from step 3" in error


def test_a_logit_scale_that_is_not_finite_is_named(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    plain = Step.__call__

    def spoiled(self: Step, batch: Batch, number: int) -> dict[str, Any]:
        with torch.no_grad():
            self.guard.model.log_logit_scale.fill_(float("nan"))
        return plain(self, batch, number)

    monkeypatch.setattr(Step, "__call__", spoiled)
    with pytest.raises(TrainingError, match="log logit scale"):
        train(config)


def test_a_job_that_torchrun_starts_again_finds_its_own_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    train(config)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ConfigError, match="must be new"):
        train(dataclasses.replace(config, seed=1))
    train(config)


# --- large batches in little memory -----------------------------------------------------------------------------------


def with_settings(config: RunConfig, *, train: dict[str, object] | None = None, **optim: object) -> RunConfig:
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, **(train or {})),  # type: ignore[arg-type]
        optim=dataclasses.replace(config.optim, **optim),  # type: ignore[arg-type]
    )


def test_half_precision_and_averages_continue_to_the_bit(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    config = with_settings(
        config,
        train={"precision": "bf16", "micro_batch": 7, "recompute_blocks": True, "duplicates": "positives"},
        moments="bf16",
        bf16_weights=("text",),
        ema_decay=0.9,
        clip_norm=0.5,
    )
    whole = train(dataclasses.replace(config, out=tmp_path / "whole"))
    stop_after(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    parts = train(config, resume=True)
    for folder in ("model", "model-ema"):
        one, two = (load_file(out / folder / "model.safetensors") for out in (whole, parts))
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert all(tensor.dtype != torch.bfloat16 for tensor in one.values())
    assert load(parts / "model-ema").fingerprint != load(parts).fingerprint
    assert load_file(max((parts / "checkpoints").iterdir()))["exp_avg.image.conv1.weight"].dtype == torch.bfloat16


def test_weights_in_bf16_are_computed_with_in_bf16(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="must be bf16"):
        with_settings(config, bf16_weights=("text",))
    with pytest.raises(ConfigError, match="FSDP shards weights of one dtype"):
        with_settings(config, train={"precision": "auto", "parallel": "fsdp"}, bf16_weights=("text",))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(ConfigError, match="no fast bf16"):
        train(with_settings(config, train={"precision": "auto"}, bf16_weights=("text",)))
    assert config.out is not None and not config.out.exists()


def test_gradients_are_clipped(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    norms: list[float] = []
    plain = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        plain(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(with_settings(config, clip_norm=0.1))
    assert len(norms) == 10 and norms == pytest.approx([0.1] * 10, rel=1e-4)


def test_a_run_starts_from_a_model(config: RunConfig, tmp_path: Path):
    base = train(config)
    next_config = dataclasses.replace(config, init=base / "model", out=tmp_path / "next", vocab_size=300)
    run = RunDirectory(train(with_settings(next_config, lr=1e-12)))
    one, two = (load_file(out / "model" / "model.safetensors") for out in (base, run.path))
    assert all(torch.allclose(one[n], two[n], atol=1e-6) for n in one if "running" not in n and "tracked" not in n)
    assert run.tokenizer.read_text() == (base / "tokenizer.json").read_text()
    with pytest.raises(ConfigError, match="must be a ViT-mini for the contrastive objective"):
        train(dataclasses.replace(next_config, model="ViT-mini", out=tmp_path / "other"))


# --- what is not finite -----------------------------------------------------------------------------------------------


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, *at: str, times: int = 1000) -> None:
    """Make a gradient infinite when a batch with one of these keys comes."""
    plain, left = step_module.backward, times

    def backward(replica: Trainee, batch: Batch, **settings: object) -> object:
        outcome = plain(replica, batch, **settings)  # type: ignore[arg-type]
        nonlocal left
        if left and set(at) & set(batch.keys):
            left -= 1
            gradient = replica.model.text.norm.weight.grad
            assert gradient is not None
            gradient[0] = float("inf")
        return outcome

    monkeypatch.setattr(step_module, "backward", backward)


def test_a_gradient_that_is_not_finite_stops_the_run_and_is_named(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    spoil_gradients(monkeypatch, "05.png")
    with pytest.raises(
        TrainingError, match=r"of step [01] must be finite.*gradient of the text encoder, text\.norm\.w"
    ):
        train(config)


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_a_step_that_is_not_finite_is_skipped(config: RunConfig, monkeypatch: pytest.MonkeyPatch, moments: str):
    """The batch with picture 05, once an epoch, changes nothing: neither weights nor moments nor AdamW's count."""
    spoil_gradients(monkeypatch, "05.png")
    monkeypatch.setattr(log, "LOG_EVERY", 1)
    run = RunDirectory(train(with_settings(config, train={"non_finite": "skip"}, moments=moments)))
    lines = run.read_metrics()
    assert len(lines) == 10 and sum(line["skipped"] for line in lines) == 5
    (path,) = run.checkpoints.iterdir()
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["updates"] == "5"
    assert all(tensor.isfinite().all() for tensor in load_file(path).values())


def test_a_step_that_is_left_out_leaves_no_trace(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    """Features that are not finite come from activations that are not: BatchNorm's statistics must not keep them."""
    plain, done = step_module.backward, 0

    def backward(replica: Trainee, *args: object, **settings: object) -> object:
        nonlocal done
        done += 1
        gain = replica.model.image.bn1.weight
        before = gain.data.clone()
        if done == 4:
            gain.data[0] = float("nan")
        outcome = plain(replica, *args, **settings)  # type: ignore[arg-type]
        gain.data.copy_(before)
        return outcome

    monkeypatch.setattr(step_module, "backward", backward)
    monkeypatch.setattr(log, "LOG_EVERY", 1)
    run = RunDirectory(train(with_settings(config, train={"non_finite": "skip"}, ema_decay=0.9)))
    assert [line["skipped"] for line in run.read_metrics()] == [0.0] * 3 + [1.0] + [0.0] * 6
    for file in (max(run.checkpoints.iterdir()), run.model_ema / "model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


def test_a_run_that_is_never_finite_gives_up(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    spoil_gradients(monkeypatch, *(f"{index:02d}.png" for index in range(40)))
    monkeypatch.setattr(guard, "TROUBLES", 3)
    for policy in ("skip", "rewind"):
        with pytest.raises(TrainingError, match="3 times without getting on"):
            train(with_settings(config, train={"non_finite": policy}), resume=policy == "rewind")


def test_a_run_goes_back_to_its_checkpoint_and_leaves_out_the_batches_since(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    spoil_gradients(monkeypatch, "05.png", times=2)
    monkeypatch.setattr(log, "LOG_EVERY", 1)
    config = with_settings(config, train={"non_finite": "rewind", "batch_size": 8})
    config = with_settings(config, train={"epochs": 3.0, "checkpoint_minutes": 1000.0})
    run = RunDirectory(train(config))
    lines = run.read_metrics()
    assert [line["step"] for line in lines] == list(range(1, 16)) and not any(line["skipped"] for line in lines)
    (path,) = [path for path in run.checkpoints.iterdir() if "15" in path.name]
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["updates"] == "15" and file.metadata()["left_out"] == "6"
    said = capsys.readouterr().err
    assert "was not finite: loss" in said and "Back at step 0" in said


# --- pairs that cannot be used ---------------------------------------------------------------------------------------


def damage(folder: str | None, names: tuple[str, ...]) -> None:
    for name in names:
        path = Path(str(folder)) / name
        path.write_bytes(path.read_bytes()[:200])


def test_dropped_pairs_are_counted_over_a_resume(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    damage(config.data, ("07.png", "11.png"))
    stop_after(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    run = RunDirectory(train(config, resume=True))
    (*_, line) = run.read_metrics()
    assert line["step"] == 10 and line["dropped"] == 10 and line["dropped_for"] == {"damaged picture": 10}
    assert 0 <= line["loader_wait"] < 1
    data = json.loads(run.data.read_text())
    assert data["dropped"] == {"damaged picture": 10} and set(data["unreadable"]) == {"07.png", "11.png"}
    with safe_open(max(run.checkpoints.iterdir()), framework="pt") as file:
        assert json.loads(file.metadata()["dropped"]) == {"damaged picture": 10}
    manifest = json.loads(run.manifest.read_text())
    assert manifest["fingerprint"] == data["fingerprint"] and manifest["parts"][0]["pairs"] == 40


def test_training_stops_when_too_many_pairs_are_dropped(config: RunConfig):
    damage(config.data, ("07.png", "11.png", "23.png"))
    longer = dataclasses.replace(config, train=TrainConfig(batch_size=20, epochs=8.0, precision="fp32"))
    with pytest.raises(DataError, match=r"Got 15 of 200 .*damaged picture.* limner resume .*--max-dropped 0.11"):
        train(longer)
    assert config.out is not None and [p.stem for p in (config.out / "checkpoints").iterdir()] == ["step-00000010"]
    run = RunDirectory(train(dataclasses.replace(longer, max_dropped=0.11), resume=True))
    assert json.loads(run.data.read_text())["dropped"] == {"damaged picture": 24}


def test_training_does_not_start_when_too_many_pairs_cannot_be_used(config: RunConfig):
    for name in ("07.txt", "11.txt", "23.txt"):
        (Path(str(config.data)) / name).unlink()
    with pytest.raises(DataError, match=r"Got 3 of 40 that are not \(3 skipped: no caption\)"):
        train(config)
    assert config.out is not None and not config.out.exists()


def test_other_data_is_refused_unless_asked_for(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    stop_after(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    (Path(str(config.data)) / "07.txt").write_text("other words")
    with pytest.raises(TrainingError, match="--other-data"):
        train(config, resume=True)
    run = RunDirectory(train(config, resume=True, other_data=True))
    assert run.is_finished and [line["step"] for line in run.read_metrics()][-1] == 10


def test_measuring_on_the_way_changes_no_bit_of_the_run(
    config: RunConfig, picture: Callable[..., bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for number, name in enumerate(("dog", "table")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for copy in range(3):
            (tmp_path / "set" / name / f"{copy}.png").write_bytes(picture(seed=10 * number + copy))
    plain = load_file(train(config) / "model/model.safetensors")
    measured = dataclasses.replace(
        config, out=tmp_path / "measured", evaluate_every=2, evaluate_data=str(tmp_path / "set")
    )
    run = RunDirectory(train(measured))
    parts = load_file(run.model / "model.safetensors")
    assert all(torch.equal(parts[name], tensor) for name, tensor in plain.items())
    rows = run.read_measured()
    steps = run.read_metrics()[-1]["step"]
    assert sorted({row["step"] for row in rows}) == sorted({*range(2, steps, 2), steps})
    assert {row["metric"] for row in rows} >= {"zero_shot.top1", "zero_shot.mean_per_class"}
    last = [row for row in rows if row["step"] == steps]
    model = load(run.path)
    expected = {row.metric: row.value for row in evaluate(model, tmp_path / "set")}
    assert {row["metric"]: row["value"] for row in last} == expected
    assert "set zero_shot.top1" in capsys.readouterr().err
    assert json.loads(run.data.read_text())["captions_cut"] == 0


def test_measuring_on_the_way_goes_on_where_a_run_was_stopped(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    """Without data of its own a run is measured on the pairs that it keeps back; no step is there twice."""
    measured = dataclasses.replace(config, evaluate_every=1, test=None, holdout=0.3)
    stop_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(measured)
    monkeypatch.undo()
    run = RunDirectory(train(measured, resume=True))
    steps = [row["step"] for row in run.read_measured() if row["metric"] == "retrieval.text_to_image@1"]
    assert steps == list(range(1, run.read_metrics()[-1]["step"] + 1))


def test_what_cannot_be_measured_is_found_before_the_first_step(config: RunConfig, tmp_path: Path):
    with pytest.raises(DataError, match="must exist"):
        train(dataclasses.replace(config, evaluate_every=2, evaluate_data=str(tmp_path / "nowhere")))
    assert config.out is not None and not config.out.exists()
    with pytest.raises(ConfigError, match="evaluate-data must come with --evaluate-every"):
        dataclasses.replace(config, evaluate_data="somewhere")
