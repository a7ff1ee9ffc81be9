"""The workflow for users is one that GitHub takes, asks for little, and its commands do what they are there for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

WORKFLOW = Path(__file__).parents[2] / "examples" / "ci" / "stepcheck.yml"
RIGHT = "import torch\n\n\nclass YourAdam(torch.optim.Adam):\n    pass\n"
WRONG = RIGHT.replace("    pass\n", "    def step(self, closure=None):\n        return None\n")


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_actions_are_pinned_and_scripts_hold_no_expressions(workflow):
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", s["uses"]) for s in steps(workflow) if "uses" in s)
    assert not [s for s in steps(workflow) if "${{" in s.get("run", "")]


def test_what_runs_code_of_a_pull_request_may_write_nothing(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        writes = "write" in job.get("permissions", {}).values()
        assert not (writes and any("run" in s for s in job["steps"]))
        assert not writes or "github.ref == 'refs/heads/main'" in job["if"]


@pytest.fixture(params=[RIGHT, WRONG], ids=["right", "wrong"])
def checkout(request, tmp_path):
    (tmp_path / "yourpackage").mkdir()
    (tmp_path / "yourpackage" / "optim.py").write_text(request.param)
    return tmp_path, 0 if request.param is RIGHT else 1


@pytest.mark.slow
def test_its_commands_check_summarise_and_report(workflow, checkout):
    folder, expected = checkout
    scripts = {s["name"]: s["run"] for s in steps(workflow) if "run" in s}
    assert list(scripts) == ["Install", "Check", "Report"]
    given = {k: v for k, v in workflow["env"].items() if "${{" not in v}
    environment = {
        **os.environ,
        **given,
        "SEED": "7",
        "EXAMPLES": "20",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for name, status in (("Check", expected), ("Report", 0)):
        # As GitHub's runners call it.
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", scripts[name]]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
    assert "yourpackage.optim:YourAdam" in (folder / "summary.md").read_text()
    # What the workflow uploads is there.
    uploads = [s["with"]["path"].split() for s in steps(workflow) if "upload" in s.get("uses", "")]
    assert all((folder / path).exists() for paths in uploads for path in paths)
    assert (folder / "report" / "badge.svg").exists()
