//! Tests of the messages around the batches, and of recordings as files.

use std::collections::BTreeSet;

use super::file::{MAGIC, RecordingFile, Unreadable, Writer};
use super::*;
use crate::proto::subscribe_response::Message;

/// Returns a stream that begins with a snapshot of two parts after the fifth event of the good
/// history, has three batches, and ends with a goodbye.
fn good_subscription() -> RecordedSubscription {
    let whole = record(&good(), 5);
    let header = SubscribeHeader {
        instance: "i".into(),
        loop_id: 7,
        epoch: "e".into(),
        after: 5,
        snapshot: true,
        ..SubscribeHeader::default()
    };
    let mut subscription = RecordedSubscription::new(View::All, header);
    subscription.messages = vec![
        part(5, Some(Loop::default()), &[1, 2], false),
        part(5, None, &[3], true),
    ];
    let batches = whole.batches[1..4].iter().cloned();
    subscription.messages.extend(batches.map(Message::Batch));
    subscription.messages.push(goodbye(20));
    subscription
}

fn at(seq: u64) -> Option<Cursor> {
    let epoch = "e".into();
    Some(Cursor { epoch, seq })
}

fn part(seq: u64, of: Option<Loop>, ids: &[u64], last: bool) -> Message {
    let watch = |id: &u64| Watch {
        watch_id: *id,
        ..Watch::default()
    };
    Message::Snapshot(Snapshot {
        cursor: at(seq),
        r#loop: of,
        watches: ids.iter().map(watch).collect(),
        last,
    })
}

fn goodbye(seq: u64) -> Message {
    Message::Goodbye(Goodbye {
        reason: GoodbyeReason::Done.into(),
        cursor: at(seq),
        message: String::new(),
    })
}

/// Checks all rules of a subscription, those of its batches included.
fn judge(subscription: &RecordedSubscription) -> Result<Summary, Violation> {
    check(&subscription.recording()?)
}

#[test]
fn a_stream_with_a_snapshot_and_a_goodbye_is_accepted() {
    let mut subscription = good_subscription();
    let summary = judge(&subscription).unwrap();
    assert_eq!((summary.events, summary.through), (15, 20));
    // A stream may break off anywhere.
    while subscription.messages.pop().is_some() {
        judge(&subscription).unwrap();
    }
    let mut bare = good_subscription();
    bare.header.snapshot = false;
    bare.messages = vec![goodbye(5)];
    judge(&bare).unwrap();
}

type PlantSubscription = fn(&mut RecordedSubscription);

#[rustfmt::skip]
pub(super) const PLANTED: &[(Rule, PlantSubscription)] = &[
    (Rule::HeaderOnce, |l| l.messages.insert(3, Message::Header(l.header.clone()))),
    (Rule::SnapshotPlace, |l| l.header.snapshot = false),
    (Rule::SnapshotPlace, |l| drop(l.messages.drain(..2))),
    (Rule::SnapshotPlace, |l| drop(l.messages.remove(1))),
    (Rule::SnapshotPlace, |l| l.messages.swap(1, 2)),
    (Rule::SnapshotPlace, |l| l.messages.insert(2, part(5, None, &[4], true))),
    (Rule::SnapshotPlace, |l| l.messages.insert(3, part(5, None, &[4], true))),
    (Rule::SnapshotCursor, |l| l.messages[0] = part(4, Some(Loop::default()), &[], false)),
    (Rule::SnapshotCursor, |l| l.messages[1] = part(6, None, &[], true)),
    (Rule::SnapshotCursor, |l| l.messages[0] = Message::Snapshot(Snapshot::default())),
    (Rule::SnapshotLoop, |l| l.messages[0] = part(5, None, &[], false)),
    (Rule::SnapshotLoop, |l| l.messages[1] = part(5, Some(Loop::default()), &[], true)),
    (Rule::SnapshotOrder, |l| l.messages[1] = part(5, None, &[2], true)),
    (Rule::SnapshotOrder, |l| l.messages[0] = part(5, Some(Loop::default()), &[2, 1], false)),
    (Rule::GoodbyeLast, |l| l.messages.insert(4, goodbye(15))),
    (Rule::GoodbyeLast, |l| l.messages.push(goodbye(20))),
    (Rule::GoodbyeCursor, |l| l.messages[5] = goodbye(19)),
    (Rule::GoodbyeCursor, |l| l.messages[5] = Message::Goodbye(Goodbye::default())),
    (Rule::GoodbyeCursor, |l| { l.messages.pop(); l.messages.pop(); l.messages.push(goodbye(20)); }),
    (Rule::BatchAfter, |l| { l.header.snapshot = false; l.messages.drain(..3); }),
];

#[test]
fn every_violation_planted_around_the_batches_is_found_by_its_rule() {
    for (number, (rule, plant)) in PLANTED.iter().enumerate() {
        let mut subscription = good_subscription();
        plant(&mut subscription);
        let violation = judge(&subscription).expect_err(rule.name());
        assert_eq!(violation.rule, *rule, "subscription {number}: {violation}");
    }
    let rules: BTreeSet<_> = PLANTED.iter().map(|(rule, _)| *rule).collect();
    assert_eq!(rules.len(), 8, "each rule around the batches is planted");
}

#[test]
fn a_filter_tells_what_can_be_missing() {
    assert_eq!(view_of(None), View::All);
    assert_eq!(view_of(Some(&Filter::default())), View::All);
    let watches = Filter {
        watch_ids: vec![1],
        ..Filter::default()
    };
    assert_eq!(view_of(Some(&watches)), View::Watches);
    let kinds = Filter {
        kinds: vec![10],
        ..watches
    };
    assert_eq!(view_of(Some(&kinds)), View::Kinds);
}

#[test]
fn a_difference_is_shown_without_what_is_the_same() {
    let mut a = record(&[fact(1, data(Stream::Stdout, 0, 9000))], 1);
    let b = a.clone();
    a.batches[0].events[0].kind = Some(data(Stream::Stdout, 1, 9000));
    let violation = check_same(&a, &b).unwrap_err();
    let text = violation.to_string();
    assert!(
        text.contains("offset: 1") && text.contains("offset: 0"),
        "{text}"
    );
    assert!(text.len() < 400, "{text}");
}

/// Writes a file with these subscriptions.
fn recorded(subscriptions: &[RecordedSubscription]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let request = SubscribeRequest {
        consumer: "c".into(),
        ..SubscribeRequest::default()
    };
    let mut writer = Writer::create(file.path(), true, &request).unwrap();
    for subscription in subscriptions {
        let header = Message::Header(subscription.header.clone());
        for message in std::iter::once(&header).chain(&subscription.messages) {
            let message = Some(message.clone());
            writer
                .push(&SubscribeResponse {
                    message,
                    ..SubscribeResponse::default()
                })
                .unwrap();
        }
    }
    file
}

#[test]
fn a_file_gives_back_what_was_recorded() {
    let mut second = good_subscription();
    second.header.snapshot = false;
    second.header.after = 20;
    second.messages = vec![goodbye(20)];
    let subscriptions = [good_subscription(), second];
    let file = RecordingFile::read(recorded(&subscriptions).path()).unwrap();
    assert_eq!((file.request.consumer.as_str(), file.cut_off), ("c", 0));
    assert_eq!(file.subscriptions, subscriptions);
}

#[test]
fn a_file_that_is_cut_off_anywhere_gives_the_messages_before() {
    let file = recorded(&[good_subscription()]);
    let bytes = std::fs::read(file.path()).unwrap();
    let whole = RecordingFile::read(file.path()).unwrap();
    let mut lengths = BTreeSet::new();
    for end in MAGIC.len()..bytes.len() {
        std::fs::write(file.path(), &bytes[..end]).unwrap();
        let file = RecordingFile::read(file.path()).unwrap();
        let Some(subscription) = file.subscriptions.first() else {
            continue;
        };
        let expected = &whole.subscriptions[0].messages[..subscription.messages.len()];
        assert_eq!(subscription.messages, expected);
        if file.cut_off == 0 {
            lengths.insert(subscription.messages.len());
        }
    }
    let all: BTreeSet<_> = (0..whole.subscriptions[0].messages.len()).collect();
    assert_eq!(lengths, all, "between two messages nothing is cut off");
}

#[test]
fn what_is_no_recording_is_refused_with_where() {
    let read = |bytes: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        RecordingFile::read(file.path()).map(drop).unwrap_err()
    };
    for foreign in [&b""[..], b"evloopd", b"evloopd recording 2\n", b"\x7fELF"] {
        assert!(matches!(read(foreign), Unreadable::Foreign));
    }
    let damaged = |tail: &[u8]| read(&[MAGIC, tail].concat()).to_string();
    let start = MAGIC.len();
    let request = [0_u8];
    for tail in [&[0xff; 11][..], &[0x81, 0x80, 0x80, 0x08]] {
        let text = damaged(tail);
        assert!(text.contains(&format!("damaged at byte {start}")), "{text}");
    }
    let text = damaged(&[&request[..], &[2, 0xff, 0xff]].concat());
    assert!(
        text.contains(&format!("damaged at byte {}", start + 1)),
        "{text}"
    );
    let batch = SubscribeResponse {
        message: Some(goodbye(1)),
        ..SubscribeResponse::default()
    };
    let mut headless = request.to_vec();
    prost::Message::encode_length_delimited(&batch, &mut headless).unwrap();
    assert!(damaged(&headless).contains("must be the header"));
    let missing = RecordingFile::read(std::path::Path::new("/nonexistent")).unwrap_err();
    assert!(matches!(missing, Unreadable::Io(_)));
}

#[test]
fn a_recording_replaces_another_only_if_told_to() {
    let file = recorded(&[good_subscription()]);
    let request = SubscribeRequest::default();
    let error = Writer::create(file.path(), false, &request).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(
        RecordingFile::read(file.path())
            .unwrap()
            .subscriptions
            .len(),
        1
    );
    Writer::create(file.path(), true, &request).unwrap();
    assert_eq!(
        RecordingFile::read(file.path())
            .unwrap()
            .subscriptions
            .len(),
        0
    );
}
