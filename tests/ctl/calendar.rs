//! `evloopctl calendar`, which needs no daemon.

use std::path::Path;

use serde_json::{Value, json};

use crate::program::ctl;

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
