//! A daemon whose cgroup runs out of memory.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::common::{Scene, post};
use crate::{murder, start, the_loop};

/// A cgroup whose memory is limited. It is removed with this.
struct Limited {
    path: PathBuf,
    /// The file that tells what it uses.
    used: &'static str,
}

impl Limited {
    /// Makes one; `None`, and says why, if that is not possible here.
    fn new(bytes: u64) -> Option<Self> {
        let version_1 = (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        );
        let version_2 = ("/sys/fs/cgroup", "memory.max", "memory.current");
        let mut why = Vec::new();
        for (root, limit, used) in [version_1, version_2] {
            let path = Path::new(root).join(format!("evloopd-test-{}", std::process::id()));
            let made = std::fs::create_dir(&path)
                .and_then(|()| std::fs::write(path.join(limit), bytes.to_string()));
            match made {
                Ok(()) => return Some(Self { path, used }),
                Err(error) => why.push(format!("{}: {error}", path.display())),
            }
            let _ = std::fs::remove_dir(&path);
        }
        eprintln!("SKIPPED: no memory can be limited here: {why:?}");
        None
    }

    fn take(&self, process: Pid) {
        std::fs::write(self.path.join("cgroup.procs"), process.to_string()).unwrap();
    }

    fn used(&self) -> u64 {
        let used = std::fs::read_to_string(self.path.join(self.used)).unwrap();
        used.trim().parse().unwrap()
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // It fails while processes live in it.
        while std::fs::remove_dir(&self.path).is_err_and(|e| e.raw_os_error() == Some(16)) {
            std::thread::yield_now();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_life_gives_history_back_if_its_cgroup_ran_out_of_memory_before() {
    const EVENTS: u64 = 200;
    let Some(limited) = Limited::new(256 << 20) else {
        return;
    };
    let daemon = start().await;
    limited.take(daemon.pid());
    limited.take(Pid::from_raw(daemon.info().await.pid));
    // A life that begins here, so that it knows of no such end before.
    murder(&daemon).await;
    let scene = Scene::new(daemon, "", "").await;
    let told = the_loop(&scene).await.journal.unwrap();
    let payload = vec![7; 100 << 10];
    let mut newest = 0;
    for _ in 0..EVENTS {
        newest = scene.post(vec![post("much", &payload)]).await;
    }
    murder(&scene.daemon).await;
    let now = the_loop(&scene).await.journal.unwrap();
    assert_eq!((now.epoch, now.oldest_seq), (told.epoch.clone(), 1));
    let used = limited.used();

    let mut hog = Command::new("sh")
        .args(["-c", "read go; exec tail /dev/zero"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    limited.take(Pid::from_raw(hog.id().try_into().unwrap()));
    hog.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let ended = hog.wait().unwrap();
    assert_eq!(ended.signal(), Some(Signal::SIGKILL as i32));
    let life = scene.daemon.status().await.keeper.unwrap().life;
    murder(&scene.daemon).await;
    let now = the_loop(&scene).await.journal.unwrap();
    assert_eq!(now.epoch, told.epoch);
    assert!(now.newest_seq > newest && now.oldest_seq > newest);
    assert!(limited.used() + EVENTS * (80 << 10) < used);
    assert!(scene.daemon.log().contains("memory is short"));
    let keeper = scene.daemon.status().await.keeper.unwrap();
    assert_eq!(keeper.life, life + 1);
    // What comes now stays, also in the life after that.
    let newest = scene.post(vec![post("little", b"1")]).await;
    murder(&scene.daemon).await;
    let after = the_loop(&scene).await.journal.unwrap();
    assert!(after.oldest_seq <= newest && after.newest_seq > newest);
    drop(scene);
}
