//! What is refused, and what fails.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::{Follower, Next, Rig, Spec, show};
use evloopd::follow::{Begin, Change, Doing, Error, NotRegular, Told};

fn open(path: &Path, change: impl FnOnce(&mut Spec)) -> Error {
    let mut spec = Spec::new(path, true);
    change(&mut spec);
    Follower::open(spec, std::time::Instant::now()).unwrap_err()
}

#[test]
fn a_fifo_is_refused_without_waiting_for_its_writer_or_waking_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let error = open(&path, |_| ());
    assert_eq!(
        error,
        Error::NotRegular {
            path: path.clone(),
            what: NotRegular::Fifo
        }
    );
    assert!(
        error
            .to_string()
            .ends_with("is a FIFO: only regular files can be read or followed")
    );
}

#[test]
fn only_regular_files_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, expected) in [
        (directory.path(), NotRegular::Directory),
        (&socket, NotRegular::Socket),
        (Path::new("/dev/null"), NotRegular::CharacterDevice),
    ] {
        assert!(matches!(open(path, |_| ()), Error::NotRegular { what, .. } if what == expected));
    }
}

/// Reads a file once, so many bytes in a step, and returns its bytes and the offset of its end.
fn read_once(path: &Path, budget: usize, from: Begin) -> (Vec<u8>, Option<u64>) {
    let now = std::time::Instant::now();
    let spec = Spec {
        from,
        ..Spec::new(path, false)
    };
    let mut follower = Follower::open(spec, now).unwrap();
    let (mut all, mut end) = (Vec::new(), None);
    // Longer than the file has bytes.
    for _ in 0..10_000 {
        // A look in a pause takes nothing for a cut.
        let paused = follower.step(now, 0);
        let step = follower.step(now, budget);
        for told in paused.told.into_iter().chain(step.told) {
            match told {
                Told::Data { offset, bytes, .. } => {
                    assert_eq!(offset, all.len() as u64);
                    all.extend(bytes);
                }
                Told::Eof { offset } => end = Some(offset),
                Told::Changed { change, .. } => assert_eq!(change, Change::Appeared),
                Told::Failed(error) => panic!("{error}"),
            }
        }
        if step.next == Next::Done {
            break;
        }
    }
    (all, end)
}

#[test]
fn a_file_that_tells_no_size_is_read_once_to_its_end() {
    let path = Path::new("/proc/version");
    let text = fs::read(path).unwrap();
    assert_eq!(fs::metadata(path).unwrap().len(), 0);
    for budget in [1, 7, 1 << 20] {
        let read = read_once(path, budget, Begin::Start);
        assert_eq!(read, (text.clone(), Some(text.len() as u64)));
    }
    assert_eq!(read_once(path, 1 << 20, Begin::End), (vec![], Some(0)));
    // What it says changes between two reads.
    let (uptime, _) = read_once(Path::new("/proc/uptime"), 3, Begin::Start);
    assert_eq!(uptime.iter().filter(|byte| **byte == b'\n').count(), 1);
    // An empty file has no other end.
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty");
    fs::write(&empty, "").unwrap();
    assert_eq!(read_once(&empty, 10, Begin::Start), (vec![], Some(0)));
}

#[test]
fn a_file_that_was_empty_is_read_as_any_other_once_it_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "").unwrap();
    let now = std::time::Instant::now();
    let mut follower = Follower::open(Spec::new(&path, false), now).unwrap();
    fs::write(&path, "0123456789").unwrap();
    let told = follower.step(now, 5).told;
    assert_eq!(show(&told), ["1 appeared", "1@0 01234"]);
    fs::write(&path, "ab").unwrap();
    let told = follower.step(now, 100).told;
    assert_eq!(show(&told), ["1 truncated@5-5", "1@5 ab", "eof@7"]);
}

#[test]
fn a_file_that_tells_no_size_is_not_followed() {
    let path = Path::new("/proc/version");
    assert_eq!(open(path, |_| ()), Error::NoSize { path: path.into() });
    let mut rig = Rig::new(Some("1 "));
    rig.told();
    rig.rename_to("log.1");
    std::os::unix::fs::symlink(path, &rig.path).unwrap();
    let told = rig.shown();
    assert!(
        told[0].contains("can be read once, but not followed"),
        "{told:?}"
    );
    assert_eq!(told.len(), 1);
    assert!(rig.shown().is_empty());
    fs::remove_file(&rig.path).unwrap();
    fs::write(&rig.path, "2 ").unwrap();
    assert_eq!(rig.shown(), ["2 rotated", "2@2 2 "]);
}

#[test]
fn a_name_that_leads_to_something_else_later_is_told_once_and_followed_on() {
    let mut rig = Rig::new(Some("1 "));
    rig.told();
    rig.rename_to("log.1");
    fs::create_dir(&rig.path).unwrap();
    let text = format!(
        "{} is a directory: only regular files can be read or followed",
        rig.path.display()
    );
    assert_eq!(rig.shown(), [text]);
    assert!(rig.shown().is_empty());
    // The file lost its name by this, and has no writer.
    assert_eq!(rig.status().open, 0);
    fs::remove_dir(&rig.path).unwrap();
    fs::write(&rig.path, "2 ").unwrap();
    assert_eq!(rig.shown(), ["2 rotated", "2@2 2 "]);
}

#[test]
fn a_new_file_that_may_not_be_read_yet_is_told_once_and_tried_again() {
    let mut sets = capabilities(None).unwrap();
    sets.effective
        .remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
    // Of this thread only; without it, root may read everything.
    set_capabilities(None, sets).unwrap();
    let mut rig = Rig::new(Some("1 "));
    rig.told();
    rig.rename_to("log.1");
    fs::write(&rig.path, "2 ").unwrap();
    fs::set_permissions(&rig.path, fs::Permissions::from_mode(0o000)).unwrap();
    let step = rig.step(100);
    assert_eq!(
        show(&step.told),
        [format!(
            "cannot open {}: Permission denied (os error 13)",
            rig.path.display()
        )]
    );
    assert_eq!(
        step.next,
        Next::Wake {
            after: rig.spec.check_every
        }
    );
    assert!(rig.shown().is_empty());
    fs::set_permissions(&rig.path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(rig.shown(), ["2 rotated", "2@2 2 "]);
}

#[test]
fn a_missing_file_is_an_error_only_if_it_is_not_followed() {
    let mut rig = Rig::new(None);
    assert!(rig.shown().is_empty());
    let error = open(&rig.path, |spec| spec.follow = false);
    let expected = Error::Io {
        doing: Doing::Open,
        path: rig.path.clone(),
        errno: Errno::NOENT,
    };
    assert_eq!(error, expected);
    fs::write(&rig.path, "here").unwrap();
    assert_eq!(rig.shown(), ["1 appeared", "1@0 here"]);
}

#[test]
fn fields_out_of_bounds_are_refused_by_name() {
    let path = Path::new("/nowhere");
    let field = |change: fn(&mut Spec)| match open(path, change) {
        Error::InvalidField { field, .. } => field,
        error => panic!("{error}"),
    };
    assert_eq!(field(|spec| spec.path = "log".into()), "path");
    assert_eq!(field(|spec| spec.keep_generations = 0), "keep_generations");
    assert_eq!(
        field(|spec| spec.check_every = Duration::ZERO),
        "check_every"
    );
    assert_eq!(
        field(|spec| spec.rotated_wait = Duration::MAX),
        "rotated_wait"
    );
    assert_eq!(field(|spec| spec.read_size = 0), "read_size");
}

#[test]
fn reading_begins_where_it_was_asked_to() {
    let from = |from| Rig::with(Some("0123456789"), |spec| spec.from = from).shown();
    assert_eq!(from(Begin::Start), ["1 appeared", "1@0 0123456789"]);
    assert_eq!(from(Begin::Offset(4)), ["1 appeared", "1@4 456789"]);
    assert_eq!(from(Begin::End), ["1 appeared"]);
    let rig = Rig::new(Some("0123456789"));
    let error = open(&rig.path, |spec| spec.from = Begin::Offset(11));
    assert_eq!(
        error.to_string(),
        "from: must not be beyond the end of the file, 10"
    );
}

#[test]
fn a_cut_in_front_of_where_reading_began_is_noticed() {
    let mut rig = Rig::with(Some("0123456789"), |spec| spec.from = Begin::End);
    rig.told();
    let log = rig.writer();
    log.set_len(0).unwrap();
    super::write(&log, "9876543210 new");
    assert_eq!(rig.shown(), ["1 truncated@10-0", "1@10 9876543210 new"]);
}

#[test]
fn a_file_is_read_once_to_its_end() {
    let mut rig = Rig::with(Some("0123456789"), |spec| spec.follow = false);
    assert_eq!(rig.shown(), ["1 appeared", "1@0 0123456789", "eof@10"]);
    let step = rig.step(100);
    assert!(step.told.is_empty());
    assert_eq!(step.next, Next::Done);
}

#[test]
fn a_hole_at_the_end_is_told_when_a_file_is_read_once() {
    let directory = tempfile::tempdir().unwrap();
    fs::File::create(directory.path().join("log"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let mut rig = Rig::within(directory, None, |spec| spec.follow = false);
    assert_eq!(
        rig.shown(),
        ["1 appeared", "1 hole@0+1099511627776", "eof@1099511627776"]
    );
}

#[test]
fn a_link_is_followed_each_time() {
    let mut rig = Rig::new(None);
    for name in ["a", "b"] {
        fs::write(rig.other(name), name).unwrap();
    }
    std::os::unix::fs::symlink("a", &rig.path).unwrap();
    assert_eq!(rig.shown(), ["1 appeared", "1@0 a"]);
    std::os::unix::fs::symlink("b", rig.other("next")).unwrap();
    fs::rename(rig.other("next"), &rig.path).unwrap();
    assert_eq!(rig.shown(), ["2 rotated", "2@1 b"]);
}
