//! Calendars: `evloopctl calendar`, which needs no daemon, and the time zones of timers.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::Daemon;
use crate::program::{Following, ctl};

const NOWHERE: &str = "/nonexistent/socket";

async fn told(words: &[&str]) -> Value {
    let words = [&["calendar", "--json"][..], words].concat();
    let mut told = ctl(Path::new(NOWHERE), &words).await.values();
    told.pop().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_calendar_is_told_in_its_zone_also_where_the_clock_is_changed() {
    let berlin = ["--zone", "Europe/Berlin", "-n", "2", "--after"];
    // The clock is set forward from 02:00 to 03:00, and back from 03:00 to 02:00.
    for (text, after, due) in [
        (
            "30 2 * * *",
            "2027-03-27 12:00",
            ["2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"],
        ),
        (
            "30 2 * * *",
            "2027-10-30 12:00",
            ["2027-10-31T00:30:00Z", "2027-11-01T01:30:00Z"],
        ),
        (
            "*:30",
            "2027-10-31 02:00",
            ["2027-10-31T00:30:00Z", "2027-10-31T01:30:00Z"],
        ),
    ] {
        let words = [&[text][..], &berlin, &[after]].concat();
        let told = told(&words).await;
        assert_eq!(told["zone"], "Europe/Berlin");
        assert_eq!(told["due"], json!(due), "{text} after {after}");
    }
    // The zone that an expression has counts.
    let words = ["Sun 03:00 Asia/Tokyo", "--zone", "UTC", "--after"];
    let told = told(&[&words[..], &["2027-01-01", "-n", "1"]].concat()).await;
    assert_eq!(told["due"], json!(["2027-01-02T18:00:00Z"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_calendar_is_shown_to_people_and_a_wrong_one_is_explained() {
    let words = [
        "calendar",
        "0 3 * * SUN",
        "--zone",
        "Asia/Tokyo",
        "-n",
        "1",
        "--after",
        "2027-01-01",
    ];
    let shown = ctl(Path::new(NOWHERE), &words).await.good();
    let expected = "Sun 2027-01-03 03:00:00 +09 Asia/Tokyo";
    assert!(shown.starts_with(expected), "{shown}");
    for (words, told) in [
        (&["0 0 30 2 *"][..], "never comes"),
        (&["61 * * * *"], "minute"),
        (&["Mon 25:00"], "hour"),
        (&["daily", "--zone", "Europe/Berlim"], "unknown"),
        (&["daily", "--after", "soon"], "soon"),
        (&["@reboot"], "@reboot"),
    ] {
        let words = [&["calendar"][..], words].concat();
        ctl(Path::new(NOWHERE), &words).await.failed(2, &[told]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_new_expression_keeps_the_time_zone_unless_another_is_given() {
    let daemon = Daemon::start("").await;
    let words = ["cron", "30 2 * * *", "--zone", "Asia/Tokyo", "--name", "t"];
    let mut timer = Following::start(&daemon.socket, &words);
    assert!(timer.complaint().await.contains("+09 Asia/Tokyo"));
    for (words, zone) in [
        (&["--cron", "0 3 * * *"][..], "Asia/Tokyo"),
        (&["--cron", "*-*-* 04:00"], "Asia/Tokyo"),
        (&["--cron", "*-*-* 05:00 Asia/Kolkata"], "Asia/Kolkata"),
        (&["--cron", "0 6 * * *"], "Asia/Kolkata"),
        (&["--zone", "Europe/Berlin"], "Europe/Berlin"),
        (
            &["--cron", "0 7 * * *", "--zone", "Asia/Dubai"],
            "Asia/Dubai",
        ),
        (&["--pause"], ""),
    ] {
        let told = ctl(&daemon.socket, &[&["update", "t"], words].concat()).await;
        let next = match zone {
            "" => "it is paused".to_owned(),
            _ => format!(" {zone}"),
        };
        assert!(told.stderr.contains(&next), "{words:?}: {told:?}");
        told.good();
    }
    // A timer without a zone gets that of the caller, as a new one does.
    ctl(
        &daemon.socket,
        &["update", "t", "--resume", "--every", "1h"],
    )
    .await
    .good();
    let told = ctl(&daemon.socket, &["update", "t", "--cron", "0 3 * * *"]).await;
    assert!(told.stderr.contains("next: "), "{told:?}");
    timer.kill().await;
}
