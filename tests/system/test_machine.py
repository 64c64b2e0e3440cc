"""The shipped units, and a daemon of a login shell, on a machine with systemd."""
import json

import machine

MIB = 1 << 20

pytestmark = machine.MARKS


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
