"""The batch scripts of the page on clusters put a job that was warned into the queue again, and none that has ended."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "paper" / "manual" / "clusters.md").read_text(encoding="utf-8")
SCRIPTS = {
    re.search(r"^(srun|mpiexec|torchrun) ", text, re.MULTILINE)[1]: text
    for text in re.findall(r"```sh\n(#!.*?)```", PAGE, re.DOTALL)
}
# In the place of launchers: it ends as a run does, by itself or at a signal.
LAUNCHER = """#!/bin/bash
mkdir -p runs/era5
leave() { echo "{\\"status\\": \\"$1\\"}" > runs/era5/result.json; exit $2; }
trap 'leave terminated 143' USR1 TERM
echo $$ > started
for k in $(seq $STEPS); do sleep 0.05; done
leave max_steps 0
"""


def test_the_page_has_a_script_for_each_launcher():
    assert set(SCRIPTS) == {"srun", "mpiexec", "torchrun"}


@pytest.mark.parametrize("launcher", ["srun", "mpiexec", "torchrun"])
@pytest.mark.parametrize("warned", [True, False])
def test_a_job_is_put_into_the_queue_again_while_it_is_not_at_its_end(tmp_path, launcher, warned):
    (tmp_path / "job.sh").write_text(SCRIPTS[launcher])
    for name, text in {launcher: LAUNCHER, "scontrol": '#!/bin/bash\necho "$@" > requeued\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    steps = "600" if warned else "2"
    given = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "STEPS": steps}
    job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=given)
    end = time.monotonic() + 20
    while warned and not ((tmp_path / "started").exists() and (tmp_path / "started").read_text().strip()):
        assert time.monotonic() < end
        time.sleep(0.02)
    if warned:  # SLURM warns the tasks of srun, and with B: the script
        sent = re.search(r"--signal=B:(\w+)", SCRIPTS[launcher])
        number = signal.SIGUSR1 if sent is None else getattr(signal, f"SIG{sent[1]}")
        os.kill(job.pid if sent else int((tmp_path / "started").read_text()), number)
    job.wait(30)
    found = tmp_path / "requeued"
    assert (found.read_text() if found.exists() else "") == ("requeue 17\n" if warned else "")
