"""An emulated machine that runs Debian with systemd: it boots, runs scripts, and powers off."""
import pathlib
import platform
import shutil
import subprocess
import textwrap

import pytest

from peers import needs

PROJECT = pathlib.Path(__file__).resolve().parents[2]

# A release of Debian whose C library is not older than the host's.
OWN = platform.freedesktop_os_release() if hasattr(platform, "freedesktop_os_release") else {}
RELEASE = OWN.get("VERSION_CODENAME")
PACKAGES = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,tzdata"
# Seconds until a machine that says nothing more has failed.
PATIENCE = 900
USER = "tester"

TEST_UNIT = """
[Unit]
After=multi-user.target systemd-logind.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'exec bash /test/system > /dev/ttyS0 2>&1'
ExecStopPost=/bin/systemctl poweroff --no-block
[Install]
WantedBy=default.target
"""

# A session as login(1) makes it.
LOGIN_UNIT = f"""
[Service]
Type=oneshot
User={USER}
PAMName=login
ExecStart=/bin/bash -l /test/user
StandardOutput=file:/test/user.log
StandardError=inherit
"""


def missing():
    """Why there can be no machine here; None if there can be one."""
    if OWN.get("ID") != "debian" or platform.machine() != "x86_64":
        return "Debian on x86_64"
    programs = ["debootstrap", "cpio", "qemu-system-x86_64", "apt-get", "dpkg", "strip"]
    absent = [program for program in programs if not shutil.which(program)]
    return " and ".join(absent) or None


# Of tests that need the machine, which boots for the first of them.
MARKS = [
    needs(root=True),
    pytest.mark.skipif(bool(missing()), reason=f"SKIPPED for want of {missing()}"),
    pytest.mark.timeout(PATIENCE + 300),
]


def run(*words, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


class Machine:
    """The root and the kernel of a machine."""

    def __init__(self, directory, programs, units):
        self.directory, self.root = directory, directory / "root"
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, self.root)
        for unneeded in ["doc", "man", "locale", "info", "i18n"]:
            shutil.rmtree(self.root / "usr/share" / unneeded, ignore_errors=True)
        for unneeded in ["var/cache/apt", "var/lib/apt/lists", "usr/lib/x86_64-linux-gnu/gconv"]:
            shutil.rmtree(self.root / unneeded, ignore_errors=True)
        for program in programs:
            run("strip", "-o", self.root / "usr/bin" / program.name, program)
        for unit in units:
            shutil.copy(unit, self.root / "etc/systemd/system")
        self.write("etc/systemd/system/test.service", TEST_UNIT)
        self.write("etc/systemd/system/login.service", LOGIN_UNIT)
        run("chroot", self.root, "useradd", "-m", "-s", "/bin/bash", USER)
        run("chroot", self.root, "systemctl", "enable", "test.service")
        (self.root / "init").symlink_to("lib/systemd/systemd")
        (self.root / "test").mkdir()
        (self.root / "test").chmod(0o777)
        self.kernel = self.fetch_kernel()

    def write(self, path, text):
        (self.root / path).write_text(textwrap.dedent(text))

    def fetch_kernel(self):
        depends = run("apt-cache", "depends", "linux-image-cloud-amd64")
        package = next(word for word in depends.split() if word.startswith("linux-image-"))
        if package == "linux-image-cloud-amd64":
            package = depends.split("Depends: ")[1].split()[0]
        at = self.directory / "kernel"
        at.mkdir()
        run("apt-get", "download", "-q", package, cwd=at)
        run("dpkg", "-x", next(at.glob("*.deb")), at)
        return next(at.glob("boot/vmlinuz-*"))

    def boot(self, scripts, user):
        """Runs the scripts one after the other, and that of a user who logs in when login.service is started.

        Returns what they print, by the lines `### NAME` that begin a part.
        """
        (self.root / "test/user").write_text(user.read_text())
        (self.root / "test/system").write_text("".join(script.read_text() for script in scripts) + 'echo "### end"\n')
        image = self.directory / "image"
        pack = f"cd {self.root} && find . -xdev | cpio -o -H newc --quiet | gzip -1 > {image}"
        run("sh", "-c", pack)
        words = ["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "2048", "-smp", "2", "-nographic", "-no-reboot"]
        words += ["-kernel", self.kernel, "-initrd", image]
        words += ["-append", "console=ttyS0 quiet systemd.show_status=no rw panic=-1"]
        said = run("qemu-system-x86_64", *words, stdin=subprocess.DEVNULL, timeout=PATIENCE, errors="replace")
        parts, part = {}, []
        for line in said.replace("\r", "").split("\n"):
            if line.startswith("### "):
                part = parts.setdefault(line[4:], [])
            else:
                part.append(line)
        assert "end" in parts, said
        return {name: "\n".join(lines) for name, lines in parts.items()}
