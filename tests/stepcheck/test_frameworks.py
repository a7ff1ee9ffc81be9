"""Optimizers of libraries that are there: each in a process of its own, for a backend is chosen once, and JAX is not forked."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADAM = {"lr": "learning_rate", "betas": "b1,b2", "step": "count", "exp_avg": "mu", "exp_avg_sq": "nu"}
OPTAX = [word for ours, theirs in ADAM.items() for word in ("--rename", f"{ours}={theirs}")]
#: The same of torchopt, which calls its options as torch does.
TORCHOPT = ["--rename", "step=count", "--rename", "exp_avg=mu", "--rename", "exp_avg_sq=nu"]
X64 = {"JAX_ENABLE_X64": "1"}
#: Packages that must be there, the environment, the subject, what is declared, and the dtypes that are then checked.
RIGHT = {
    "keras-torch": ("keras", {"KERAS_BACKEND": "torch"}, "keras:keras.optimizers:Adam", ["--like", "Adam", "--dialect", "keras", "--dtype", "float64"]),
    "keras-jax": ("keras jax", {"KERAS_BACKEND": "jax"}, "keras:keras.optimizers:Adam", ["--like", "Adam", "--dialect", "keras", "--dtype", "float32"]),
    "keras-jax-64": ("keras jax", {"KERAS_BACKEND": "jax", **X64}, "keras:keras.optimizers:SGD", ["--like", "SGD", "--dialect", "keras"]),
    "mlx": ("mlx.core", {}, "mlx:mlx.optimizers:Adam", ["--like", "Adam", "--set", "bias_correction=True"]),
    "paddle": ("paddle", {}, "paddle:paddle.optimizer:Adam", ["--like", "Adam", "--set", "amsgrad=False", "--dtype", "float32"]),
    "optax": ("optax", {}, "functions:optax:adam", ["--like", "Adam", *OPTAX]),
    "optax-64": ("optax", X64, "functions:optax:adam", ["--like", "Adam", *OPTAX]),
}  # fmt: skip


def run(*words, cwd, **environment):
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(cwd)]),
        "PYTHONWARNINGS": "ignore",
        **environment,
    }
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, check=False)  # fmt: skip


def checked(cwd, subject, *words, **environment):
    done = run("-m", "stepcheck", "check", subject, *words, "--json", "out.json", cwd=cwd, **environment)
    assert done.returncode in (0, 1, 3), done.stdout + done.stderr
    return done, json.loads((cwd / "out.json").read_text())["subjects"][0]


def there(package):
    """Skip where a package is not there; it is not imported here, where no backend is chosen."""
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        pytest.skip(f"no {package}")


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("examples", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_right_ones_pass(name, examples, tmp_path):
    packages, environment, subject, words = RIGHT[name]
    for package in packages.split():
        there(package)
    done, result = checked(tmp_path, subject, *words, "--examples", examples, **environment)
    assert result["verdict"] == "pass", done.stdout
    verdicts = {c["check"]: c["verdict"] for c in result["checks"]}
    assert verdicts["agreement"] == "pass"
    assert verdicts["memory-beside"] == verdicts["closure"] == "unsupported"


@pytest.mark.parametrize("arrays", ["float32", "float64"])
def test_torchopt_s_functions_are_given_tensors(arrays, tmp_path):
    there("torchopt")
    (tmp_path / "mine.py").write_text(
        "import torchopt\nfrom stepcheck.shapes import functional\n\n"
        'Adam = functional(torchopt.adam, torchopt.apply_updates, arrays="torch")\n'
    )
    done, result = checked(tmp_path, "mine:Adam", "--like", "Adam", *TORCHOPT, "--dtype", arrays, "--examples", 12)
    assert "agreement" in {c["check"] for c in result["checks"]}, done.stdout


def test_a_backend_without_float64_is_not_given_any(tmp_path):
    there("keras")
    words = ("--like", "SGD", "--dialect", "keras", "--examples", 4)
    done, result = checked(tmp_path, "keras:keras.optimizers:SGD", *words, KERAS_BACKEND="numpy")
    assert "unsupported: float64: it computes float32 of a parameter that is float64" in done.stdout
    assert result["verdict"] == "pass", done.stdout


WRONG = """
import keras
from keras import ops


class Wrong(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient * 2, variable, learning_rate)

    def _parallel_update_step(self, grads, variables, learning_rate):
        super()._parallel_update_step([g * 2 for g in grads], variables, learning_rate)
"""


def test_a_wrong_one_fails_and_its_script_needs_no_stepcheck(tmp_path):
    there("keras")
    (tmp_path / "wrong.py").write_text(WRONG)
    words = ("--like", "SGD", "--dialect", "keras", "--dtype", "float32", "--examples", 6)
    done, result = checked(tmp_path, "keras:wrong:Wrong", *words, KERAS_BACKEND="torch")
    assert done.returncode == 1
    found, *_ = (d for c in result["checks"] for d in c["divergences"])
    script = tmp_path / found["repro"]
    text = script.read_text().partition("\n")[2]
    assert "stepcheck" not in text
    assert "KERAS_BACKEND" in text
    told = run(script, cwd=tmp_path).stderr
    assert re.search(r"AssertionError: .* is not .* \+- ", told), told
    (tmp_path / "wrong.py").write_text(WRONG.replace("* 2", "* 1"))
    assert run(script, cwd=tmp_path).returncode == 0
    replayed = run("-m", "stepcheck", "replay", found["id"], cwd=tmp_path, KERAS_BACKEND="torch")
    assert replayed.stdout.startswith("FIXED keras:wrong:Wrong"), replayed.stdout + replayed.stderr
