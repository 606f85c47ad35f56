"""The tutorial runs as it stands: its files are saved under the names it gives them, and its commands are run."""

import re
import shlex
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "paper" / "tutorial.md").read_text(encoding="utf-8")
FILES = re.findall(r"Save it as `(\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for text in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in text.splitlines() if line]


def test_the_page_has_files_and_commands():
    assert [name for name, _ in FILES] == ["plaplace.py", "sweeps.py", "net.py"]
    assert len(re.findall(r"```python", PAGE)) == len(FILES) and len(COMMANDS) == 4
    assert max(len([line for line in text.splitlines() if line]) for _, text in FILES) <= 50


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_run(run, tmp_path, monkeypatch, command):
    if "net.py" in command:
        pytest.importorskip("torch_geometric")
    monkeypatch.chdir(tmp_path)
    for name, text in FILES:
        (tmp_path / name).write_text(text, encoding="utf-8")
    code, out, error = run(" ".join(shlex.split(command)[1:]))
    assert code == 0, error
    if command.startswith("mldd compare"):
        losses = {line.split()[0]: float(line.split()[1]) for line in out.splitlines() if re.match(r"\S+ +-0\.", line)}
        assert len(losses) == 3
        assert losses["sweeps.py:MomentumSchwarz"] == pytest.approx(losses["ml-adagrad"], rel=1e-3)
        assert (tmp_path / "compared" / "compare.pdf").is_file()
    if "dd-adagrad" in command:
        assert (tmp_path / "trained" / "model.pt").is_file()
