"""The team's set-up scripts, run as root in a mount namespace: only what root alone can change is executed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TEAM = Path(__file__).resolve().parent.parent.parent / "deployments" / "team"
NAMESPACE = ["unshare", "--mount"]
STUBS = {
    "systemctl": '[[ $* != *ActiveEnterTimestamp* ]] || echo "@$(date +%s)"',
    "apt-get": "",
    "dpkg-query": 'printf "install ok installed"',
    "runuser": 'printf "%s\\n" "$*" >>/opt/as_others; [[ $* != *"show port"* ]] || echo 5432',
    "python3": "install -D /usr/local/sbin/uv $3/bin/pip; install /usr/local/sbin/uv $3/bin/uv",
    "uv": '[[ $1 != export ]] || echo "package==1"; [[ $1 != venv ]] || install -D /bin/true "${@: -1}/bin/python"',
}
"""Stand-ins for what needs a booted machine or the network. The rest of the scripts' commands is Debian's own."""
# /etc is a copy, since useradd is the real one. Each script runs twice, as after an upgrade.
MACHINE = """
set -e
cp -a /etc {folder}/etc
mount --bind {folder}/etc /etc
for place in /opt /var/lib /usr/local/sbin; do mount -t tmpfs -o mode=755 none $place; done
cp {folder}/stubs/* /usr/local/sbin
mkdir -p /opt/musicgen-flows/deployments /etc/systemd/system
cp -r --no-preserve=ownership {team} /opt/musicgen-flows/deployments/team
chmod -R go-w /opt/musicgen-flows
cd /
{prepare}
server=/opt/musicgen-flows/deployments/team/setup_server.sh
worker=/opt/musicgen-flows/deployments/team/setup_worker.sh
bash -x $server prefect.example.org gs://bucket/musicgen
bash -x $server
bash -x $worker default:0
bash -x $worker default:0
"""
LIST = """
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
executed=$(grep -oP '^\\++ (\\w+=\\S* )*\\K[\\w./@-]+' {folder}/trace | sort -u)
sourced=$(grep -oP '^\\++ \\. \\K/\\S+' {folder}/trace | sort -u)
units=$(grep -hoP '^(ExecStart|EnvironmentFile)=\\K/\\S+' /etc/systemd/system/musicgen-*)
{{ for word in $executed; do type -P "$word" || true; done; printf '%s\\n' $sourced $units
   ls /etc/systemd/system/musicgen-*
}} | xargs namei -l
echo; cat /opt/as_others
"""


def run_set_up(folder: Path, prepare: str = "") -> subprocess.CompletedProcess[str]:
    (folder / "stubs").mkdir()
    for name, script in STUBS.items():
        (folder / "stubs" / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / "stubs" / name).chmod(0o755)
    machine = MACHINE.format(folder=folder, team=TEAM, prepare=prepare)
    script = f"({machine}) >{folder}/output 2>{folder}/trace || exit\n{LIST.format(folder=folder)}"
    return subprocess.run([*NAMESPACE, "bash", "-c", script], capture_output=True, text=True, check=False, timeout=120)


def _can_have_namespace() -> bool:
    if not all(shutil.which(name) for name in ("unshare", "namei", "useradd", "setsid")):
        return False
    done = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/opt"], capture_output=True, check=False)
    return done.returncode == 0


needs_namespace = pytest.mark.skipif(not _can_have_namespace(), reason="needs root, and a mount namespace of its own")


@needs_namespace
def test_root_executes_nothing_that_others_can_change(tmp_path: Path) -> None:
    done = run_set_up(tmp_path)
    assert done.returncode == 0, (tmp_path / "trace").read_text()[-2000:]
    walked, _, as_others = done.stdout.partition("\n\n")
    for path in ("/opt/musicgen/uv/bin/uv", "/opt/musicgen/server/bin/python", "/opt/musicgen/worker/bin/python"):
        assert f"f: {path}\n" in walked
    assert "f: /etc/musicgen/client.env\n" in walked and "f: /opt/musicgen-flows/deployments/team/common.sh" in walked
    parts = [line.split(maxsplit=3) for line in walked.splitlines() if not line.startswith("f:")]
    others = {" ".join(part) for part in parts if part[0][0] != "l" and _can_be_changed(*part[:3])}
    assert not others
    # What is the services' user's own is run as that user.
    assert "-u musicgen -- /opt/musicgen/server/bin/python -m deployments.team.register" in as_others


def _can_be_changed(mode: str, owner: str, group: str) -> bool:
    """Return whether others than root can change a path, from its line of namei."""
    return owner != "root" or (mode[5] == "w" and group != "root") or mode[8] == "w"


@needs_namespace
@pytest.mark.parametrize("spoil", ["chown nobody", "chmod o+w"])
def test_a_checkout_that_others_can_change_is_refused(spoil: str, tmp_path: Path) -> None:
    changeable = "/opt/musicgen-flows/deployments/team/register.py"
    run_set_up(tmp_path, f"{spoil} {changeable}")
    problem = (tmp_path / "trace").read_text()
    assert f"error: {changeable} can be changed by others than root" in problem
    assert "chown -R root:root /opt/musicgen-flows" in problem


def test_no_document_names_software_in_the_services_home() -> None:
    named = re.compile(r"/var/lib/musicgen/\S*(?:/bin/|\.py|\.sh)")
    assert [file.name for file in TEAM.iterdir() if file.is_file() and named.search(file.read_text())] == []
