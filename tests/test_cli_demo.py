"""What a user of `cbnorm demo` sees: output, exit status, picture; how its network trains."""

import numpy as np
import pytest

import cbnorm._cli
from cbnorm._cli.demo import numpy_layers
from cbnorm._cli.demo.network import NORMS

pytest.importorskip("sklearn")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

QUICK = ["demo", "--epochs", "1", "--no-plot"]


def untimed(output):
    """The output without the seconds, which differ from run to run."""
    results, times = output.split("Time of a step")
    return results, times[times.index("largest") :]


@pytest.fixture(scope="module")
def small_run():
    from cbnorm._cli.demo import experiment

    return experiment.run(epochs=2, seed=0, learning_rates=(0.1, 0.3))


def test_demo_prints_tables_that_fit_80_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cbnorm._cli.main(QUICK) == 0
    printed = capsys.readouterr()
    for words in ("epochs to 95% test accuracy", "highest learning rate", "population", "spread", "share"):
        assert words in printed.out
    assert max(map(len, printed.out.splitlines())) <= 80
    groups = ["normalization: none", "normalization: batch", "batch, cbnorm and NumPy timed"]
    for line, group in zip(printed.err.splitlines(), groups, strict=True):
        assert group in line
    assert list(tmp_path.iterdir()) == []


def test_same_seed_gives_same_numbers(capsys):
    from cbnorm._cli.demo import experiment, report

    outputs = []
    for seed in (3, 3, 4):
        report.print_tables(experiment.run(epochs=1, seed=seed, learning_rates=(0.3, 30.0)))
        outputs.append(untimed(capsys.readouterr().out))
    assert outputs[0] == outputs[1]
    assert outputs[0][0].split("\n", 1)[1] != outputs[2][0].split("\n", 1)[1]  # the first line has the seed


@pytest.mark.parametrize(("name", "start"), [("picture.svg", b"<?xml"), ("picture", b"\x89PNG")])
def test_picture_ending_sets_the_format(small_run, tmp_path, name, start):
    from cbnorm._cli.demo import picture

    picture.draw(small_run, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_picture_goes_to_the_current_directory(small_run, tmp_path, monkeypatch, capsys):
    from cbnorm._cli.demo import experiment

    monkeypatch.setattr(experiment, "run", lambda **options: small_run)
    monkeypatch.chdir(tmp_path)
    assert cbnorm._cli.main(["demo"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cbnorm-demo.png"]
    assert (tmp_path / "cbnorm-demo.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "cbnorm-demo.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--epochs", "0", "expected an integer of 1 or more, got '0'"),
        ("--epochs", "many", "expected an integer of 1 or more, got 'many'"),
        ("--seed", "-1", "expected an integer of 0 or more, got '-1'"),
        ("--output", "missing/picture.png", "no such directory: missing"),
        ("--output", ".", "is a directory"),
        ("--output", "picture.doc", "unknown picture format '.doc'"),
    ],
)
def test_bad_options_fail_before_training(tmp_path, monkeypatch, capsys, option, value, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as failure:
        cbnorm._cli.main(["demo", f"{option}={value}"])
    assert failure.value.code == 2
    printed = capsys.readouterr()
    assert f"argument {option}: {message}" in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_told_after_the_tables(small_run, monkeypatch, tmp_path, capsys):
    from cbnorm._cli.demo import experiment, picture

    def full_disk(results, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(experiment, "run", lambda **options: small_run)
    monkeypatch.setattr(picture, "draw", full_disk)
    assert cbnorm._cli.main(["demo", "--output", str(tmp_path / "picture.png")]) == 1
    printed = capsys.readouterr()
    assert "Test accuracy" in printed.out
    assert "No space left on device" in printed.err


def test_batch_normalization_trains_where_depth_hurts(small_run):
    assert small_run.best("batch").epochs_to_target <= 2
    assert small_run.best("none").epochs_to_target > 2
    none, batch = small_run.initial_spread["none"], small_run.initial_spread["batch"]
    assert none[-1] < none[0] / 5
    np.testing.assert_allclose(batch, batch[0], rtol=0.1)
    assert small_run.best("batch").population_accuracy > 0.9


def test_both_libraries_train_alike(small_run):
    ours, theirs = small_run.timings
    assert len(ours.losses) == len(theirs.losses) == 40
    np.testing.assert_allclose(ours.losses, theirs.losses, atol=1e-3)
    assert 0 < ours.norm_seconds < ours.step_seconds
    assert 0 < theirs.norm_seconds < theirs.step_seconds


def test_libraries_are_compared_by_the_median_step(monkeypatch):
    from cbnorm._cli.demo import experiment

    looks = iter(range(10**9))

    def interrupted_clock():  # a millisecond a look, two looks a step; the end of every tenth step is a minute late
        look = next(looks)
        return 1e-3 * look + 60 * (look % 20 == 1)

    monkeypatch.setattr(experiment, "perf_counter", interrupted_clock)
    timing = experiment.run(epochs=2, seed=0, norms=("batch",), learning_rates=(0.3,)).timings[0]
    assert timing.step_seconds == pytest.approx(1e-3, rel=0.01)


@pytest.mark.filterwarnings("error")
def test_divergence_counts_as_not_training(capsys, tmp_path):
    from cbnorm._cli.demo import experiment, picture, report

    results = experiment.run(epochs=2, seed=0, learning_rates=(1e40,))
    assert not np.isfinite(results.runs_of("none")[0].losses[-1])
    assert results.highest_rate("none") is None
    report.print_tables(results)
    assert "never" in capsys.readouterr().out
    picture.draw(results, tmp_path / "picture.png")


@pytest.mark.parametrize("norms", [("layer", "group", "rms"), ("none",)])
def test_any_normalizations_can_be_compared(norms, capsys, tmp_path):
    from cbnorm._cli.demo import experiment, picture, report

    results = experiment.run(epochs=2, seed=0, norms=norms, learning_rates=(0.03,))
    assert [run.norm for run in results.runs] == list(norms)
    report.print_tables(results)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert all(f"{norm}, cbnorm" in printed for norm in norms if norm != "none")
    # The same training with the formulas in the place of cbnorm.
    for ours, theirs in zip(results.timings[::2], results.timings[1::2], strict=True):
        np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-3)
    picture.draw(results, tmp_path / "norms.png")


def test_an_unknown_normalization_is_told(capsys):
    with pytest.raises(SystemExit) as failure:
        cbnorm._cli.main(["demo", "--norm", "batch", "lair"])
    assert failure.value.code == 2
    assert "argument --norm: invalid choice: 'lair'" in capsys.readouterr().err


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "none"])
def test_numpys_layers_are_called_like_cbnorms_and_give_the_same(norm):
    rng = np.random.default_rng(0)
    batches, douts = rng.standard_normal((2, 3, 60, 100)).astype(np.float32)
    ours, theirs = (NORMS[norm](layers, 100) for layers in (cbnorm, numpy_layers))
    for layer in (ours, theirs):
        for parameter in layer.parameters().values():
            parameter += np.linspace(0, 0.5, 100, dtype=np.float32)
    assert list(ours.parameters()) == list(theirs.parameters())
    for x, dout in zip(batches, douts, strict=True):
        np.testing.assert_allclose(theirs.forward(x), ours.forward(x), atol=1e-5)
        np.testing.assert_allclose(theirs.backward(dout), ours.backward(dout), atol=1e-5)
        assert list(ours.grads) == list(theirs.grads)
        for name, gradient in ours.grads.items():
            assert theirs.grads[name].shape == gradient.shape
            assert theirs.grads[name].dtype == gradient.dtype
            np.testing.assert_allclose(theirs.grads[name], gradient, atol=1e-4)
    for layer in (ours, theirs):
        layer.eval()
    np.testing.assert_allclose(theirs.forward(batches[0]), ours.forward(batches[0]), atol=1e-5)
