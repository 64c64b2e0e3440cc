"""The shipped units, and a daemon of a login shell, on a machine with systemd."""
import json
import os
import pathlib

import machine
import pytest

from peers import needs

PROJECT = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20

pytestmark = [
    needs(root=True),
    pytest.mark.skipif(bool(machine.missing()), reason=f"SKIPPED for want of {machine.missing()}"),
    pytest.mark.timeout(machine.PATIENCE + 300),
]

SYSTEM = """
export EVLOOPD_SOCKET=/run/evloopd/evloopd.sock
shown() { evloopctl show --json "$1"; }
systemctl start evloopd
echo "### status"
evloopctl status --json
echo "### own cgroup"
cat /proc/$(systemctl show -P MainPID evloopd)/cgroup
echo "### memory"
evloopctl run --name large -- dd if=/dev/zero of=/dev/null bs=40M count=1 2> /dev/null
shown large
echo "### neighbour"
evloopctl run -d --name neighbour -- sleep 1000
evloopctl run -d --name greedy -i -- sh -c 'read go; dd if=/dev/zero of=/dev/null bs=60M count=1'
group=$(shown greedy | sed 's/.*"cgroup":"\\([^"]*\\)".*/\\1/')
echo 20M > $group/memory.max
echo 0 > $group/memory.swap.max
echo go | evloopctl write greedy
evloopctl wait greedy
shown greedy
echo "### after"
shown neighbour
systemctl is-active evloopd
echo "### stopped"
systemctl restart evloopd
systemctl is-active evloopd
evloopctl run -- true && echo runs
systemctl stop evloopd
ls /sys/fs/cgroup/system.slice | grep evloopd || echo nothing
systemctl start login
cat /test/user.log
echo "### end"
"""

USER = """
echo "### scope"
evloopd 2> /test/evloopd.log &
pid=$!
until evloopctl status > /dev/null 2>&1; do sleep 0.2; done
cat /proc/$pid/cgroup
evloopctl status --json
echo "### user's memory"
evloopctl run --name large -- dd if=/dev/zero of=/dev/null bs=40M count=1 2> /dev/null
evloopctl show --json large
echo "### bomb"
cat > /test/bomb <<'END'
trap '' TERM
bomb() { bomb | bomb & }
bomb
sleep 1000
END
evloopctl run -d --name bomb --limit nproc=150 --stderr /dev/null -- bash /test/bomb
evloopctl run -d --name other -- sleep 1000
sleep 3
group=$(evloopctl show --json bomb | sed 's/.*"cgroup":"\\([^"]*\\)".*/\\1/')
echo "### bomb's processes"
wc -l < $group/cgroup.procs
echo "### bomb's stop"
evloopctl stop --time 1s bomb
echo "### bomb's end"
grep -l '/test/[b]omb' /proc/[0-9]*/cmdline 2> /dev/null | wc -l
evloopctl show --json other
evloopctl rm other
kill $pid
wait $pid
echo "### without a manager"
env -u XDG_RUNTIME_DIR -u DBUS_SESSION_BUS_ADDRESS evloopd --socket /test/sock 2> /dev/null &
pid=$!
until evloopctl --socket /test/sock status > /dev/null 2>&1; do sleep 0.2; done
evloopctl --socket /test/sock status --json
kill $pid
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    daemon = pathlib.Path(os.environ["EVLOOPD"])
    programs = [daemon, daemon.with_name("evloopctl")]
    units = [PROJECT / "deploy/systemd/system/evloopd.service"]
    return machine.Machine(tmp_path_factory.mktemp("machine"), programs, units).boot(SYSTEM, USER)


def watch(part):
    """The watch that is printed last in a part."""
    return json.loads([line for line in part.split("\n") if line.startswith("{")][-1])


def usage(part):
    return watch(part)["process"]["exited"]["cgroup_usage"]


def test_the_system_unit_delegates_a_cgroup_in_which_memory_is_counted(said):
    assert json.loads(said["status"].split("\n")[0])["cgroups"].startswith("/sys/fs/cgroup/system.slice/evloopd.service/")
    assert "0::/system.slice/evloopd.service/daemon" in said["own cgroup"]
    assert int(usage(said["memory"])["memory_peak_bytes"]) > 40 * MIB


def test_one_child_out_of_memory_ends_alone_and_says_why(said):
    assert int(usage(said["neighbour"])["oom_kills"]) >= 1
    assert "exited" not in watch(said["after"])["process"]
    assert "\nactive" in said["after"]


def test_the_unit_restarts_and_leaves_nothing(said):
    assert said["stopped"].split() == ["active", "runs", "nothing"]


def test_a_daemon_of_a_login_shell_gets_a_scope_of_the_users_manager(said):
    assert "/user@1000.service/app.slice/evloopd-" in said["scope"]
    assert ".scope/daemon\n" in said["scope"]
    assert "/user@1000.service/app.slice/evloopd-" in watch(said["scope"])["cgroups"]
    assert int(usage(said["user's memory"])["memory_peak_bytes"]) > 40 * MIB


def test_a_fork_bomb_of_a_user_ends_whole_and_alone(said):
    assert int(said["bomb's processes"]) > 50
    assert said["bomb's end"].split("\n")[0] == "0"
    assert "exited" not in watch(said["bomb's end"])["process"]


def test_without_a_manager_the_status_says_why_there_are_no_cgroups(said):
    status = watch(said["without a manager"])
    assert not status["cgroups"]
    assert "Permission denied" in status["cgroups_missing"]
    assert "no service manager" in status["cgroups_missing"]
