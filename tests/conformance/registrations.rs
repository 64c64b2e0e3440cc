//! Registration: names, labels, if_exists, batches, fences, and finished watches.

use std::time::Duration;

use evloopd::proto::batch_add_watches_result::Result as Item;
use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    AddWatchRequest, BatchAddWatchesRequest, CloseReason, GetWatchRequest, IfExists, Lifetime,
    ListWatchesRequest, LoopRef, RemoveWatchRequest, Watch, WatchSpec, WatchState,
};
use tonic::Code;

use crate::common::{
    Refusal, Scene, after, by_id, by_name, exec, never, refused, seconds, shell, tcp,
};

on_each_backend!(
    a_watch_has_what_it_was_registered_with,
    a_name_is_unique_until_its_watch_is_removed,
    an_equal_spec_returns_the_watch_running_or_finished,
    a_different_spec_names_the_field,
    a_batch_has_one_result_each,
    a_removal_is_a_fence,
    removed_watches_are_forgotten,
    a_finished_watch_is_removed_after_its_ttl,
    lists_have_pages_and_filters,
    requests_out_of_range_are_refused,
);

async fn a_watch_has_what_it_was_registered_with(scene: &mut Scene) {
    let request = AddWatchRequest {
        name: "A.b:c/d@e-f_1".into(),
        labels: [("k".to_owned(), "v".to_owned())].into(),
        user_data: u64::MAX,
        request_id: "request".into(),
        ..scene.request(never())
    };
    let spec = request.spec.clone();
    let answer = scene.try_add(request).await.unwrap();
    let watch = answer.watch.unwrap();
    assert!(!answer.existed);
    assert_eq!(watch.added, answer.added);
    assert_eq!(
        (watch.name.as_str(), watch.user_data),
        ("A.b:c/d@e-f_1", u64::MAX)
    );
    assert_eq!(
        (watch.labels["k"].as_str(), watch.watch_kind.as_str()),
        ("v", "timer")
    );
    assert_eq!(
        (watch.state(), watch.lifetime()),
        (WatchState::Open, Lifetime::Daemon)
    );
    assert_eq!(watch.spec, spec);
    assert_eq!(scene.get(watch.watch_id).await, watch);

    let event = scene.recorder.first(watch.watch_id, "added").await;
    assert_eq!(event.user_data, u64::MAX);
    match event.kind {
        Some(Kind::Added(added)) => {
            assert_eq!(
                (added.request_id.as_str(), added.name),
                ("request", watch.name)
            );
            assert_eq!(
                (added.watch_kind.as_str(), added.parent_watch_id),
                ("timer", 0)
            );
        }
        other => panic!("{other:?}"),
    }
}

fn named(scene: &Scene, name: &str, spec: Spec, if_exists: IfExists) -> AddWatchRequest {
    AddWatchRequest {
        name: name.into(),
        if_exists: if_exists.into(),
        ..scene.request(spec)
    }
}

async fn a_name_is_unique_until_its_watch_is_removed(scene: &mut Scene) {
    let request = named(scene, "one", after(Duration::ZERO), IfExists::Unspecified);
    let first = scene.try_add(request.clone()).await.unwrap().watch.unwrap();
    scene.closed(first.watch_id).await;
    let taken = scene.try_add(request.clone()).await;
    let taken = refused(taken, Code::AlreadyExists, "NAME_TAKEN");
    assert_eq!(taken.word("field"), "", "FAIL compares nothing");
    scene.remove(first.watch_id).await;
    let second = scene.try_add(request).await.unwrap().watch.unwrap();
    assert!(second.watch_id > first.watch_id, "ids are never reused");
}

async fn an_equal_spec_returns_the_watch_running_or_finished(scene: &mut Scene) {
    let spec = Spec::Process(shell("cat /nonexistent; exit 4"));
    let request = named(scene, "build", spec, IfExists::Return);
    let first = scene.try_add(request.clone()).await.unwrap();
    let id = first.watch.unwrap().watch_id;
    for _ in 0..2 {
        let again = scene
            .daemon
            .watches()
            .add_watch(request.clone())
            .await
            .unwrap();
        let again = again.into_inner();
        assert!(again.existed);
        assert_eq!(again.watch.unwrap().watch_id, id);
        assert_eq!(again.added, first.added);
        scene.closed(id).await;
    }
    let started = scene.recorder.recording.events();
    assert_eq!(
        started
            .filter(|e| matches!(e.kind, Some(Kind::Started(_))))
            .count(),
        1
    );
}

async fn a_different_spec_names_the_field(scene: &mut Scene) {
    let with = |change: fn(&mut evloopd::proto::ProcessSpec)| {
        let mut spec = exec(&["sleep", "3600"]);
        change(&mut spec);
        Spec::Process(spec)
    };
    let request = named(scene, "one", with(|_| {}), IfExists::Return);
    scene.try_add(request).await.unwrap();
    let inherited = with(|spec| spec.inherited_env = Some(evloopd::proto::InheritedEnv::default()));
    let request = named(scene, "one", inherited, IfExists::Return);
    let same = scene.daemon.watches().add_watch(request).await.unwrap();
    assert!(
        same.into_inner().existed,
        "where a request comes from is not compared"
    );
    for (spec, field) in [
        (with(|s| s.cwd = "/usr".into()), "spec.process.cwd"),
        (
            with(|s| drop(s.env.insert("A".into(), "b".into()))),
            "spec.process.env",
        ),
        (
            with(|s| s.pipe_grace = Some(seconds(1))),
            "spec.process.pipe_grace",
        ),
        (
            Spec::Process(exec(&["sleep", "3601"])),
            "spec.process.command",
        ),
        (Spec::Connection(tcp("localhost", 80)), "spec"),
    ] {
        let request = named(scene, "one", spec, IfExists::Return);
        let differs = refused(
            scene.try_add(request).await,
            Code::AlreadyExists,
            "NAME_TAKEN",
        );
        assert!(
            differs.word("field").starts_with(field),
            "{differs:?} for {field}"
        );
    }
    assert_eq!(scene.open_watches().await, 1);
}

async fn a_batch_has_one_result_each(scene: &mut Scene) {
    let item = |spec, name: &str| AddWatchRequest {
        name: name.into(),
        spec: Some(WatchSpec { spec: Some(spec) }),
        ..AddWatchRequest::default()
    };
    let request = BatchAddWatchesRequest {
        r#loop: Some(scene.target.clone()),
        requests: vec![
            item(never(), "a"),
            item(never(), "a"),
            item(Spec::Process(exec(&["/nonexistent"])), ""),
            item(never(), "b"),
        ],
        ..BatchAddWatchesRequest::default()
    };
    let answer = scene
        .daemon
        .watches()
        .batch_add_watches(request)
        .await
        .unwrap();
    let mut added = Vec::new();
    let mut reasons = Vec::new();
    for result in answer.into_inner().results {
        match result.result.unwrap() {
            Item::Added(answer) => added.push(answer.added.unwrap().seq),
            Item::Error(error) => reasons.push((Code::from(error.code), error.reason)),
        }
    }
    assert!(
        added.len() == 2 && added[0] < added[1],
        "in order: {added:?}"
    );
    let expected = [
        (Code::AlreadyExists, "NAME_TAKEN".into()),
        (Code::NotFound, "SYSTEM".into()),
    ];
    assert_eq!(reasons, expected);

    let mut wrong = item(never(), "");
    wrong.r#loop = Some(LoopRef::default());
    for requests in [vec![wrong], vec![item(never(), ""); 1025]] {
        let request = BatchAddWatchesRequest {
            r#loop: Some(scene.target.clone()),
            requests,
            ..BatchAddWatchesRequest::default()
        };
        let refusal = scene.daemon.watches().batch_add_watches(request).await;
        refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
    }
    assert_eq!(scene.open_watches().await, 2);
}

async fn a_removal_is_a_fence(scene: &mut Scene) {
    let every = evloopd::proto::timer_spec::Schedule::Every(crate::common::millis(1));
    let id = scene.add(crate::common::timer(every)).await;
    scene.recorder.nth(id, "timer_fired", 3).await;
    let request = RemoveWatchRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        request_id: "bye".into(),
    };
    let answer = scene.daemon.watches().remove_watch(request).await.unwrap();
    let removed = answer.into_inner().removed.unwrap().seq;
    scene.settle().await;
    let event = scene.recorder.first(id, "removed").await;
    assert_eq!(event.seq, removed);
    match event.kind {
        Some(Kind::Removed(of)) => assert_eq!(of.request_id, "bye"),
        other => panic!("{other:?}"),
    }
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Removed);
}

async fn removed_watches_are_forgotten(scene: &mut Scene) {
    let id = scene.add(never()).await;
    scene.remove(id).await;
    let gone = |result: Result<(), tonic::Status>| -> Refusal {
        refused(result, Code::NotFound, "WATCH_NOT_FOUND")
    };
    for watch in [by_id(id), by_name("nobody")] {
        let get = GetWatchRequest {
            r#loop: Some(scene.target.clone()),
            watch: watch.clone(),
        };
        let remove = RemoveWatchRequest {
            r#loop: Some(scene.target.clone()),
            watch,
            ..RemoveWatchRequest::default()
        };
        gone(scene.daemon.watches().get_watch(get).await.map(drop));
        gone(scene.daemon.watches().remove_watch(remove).await.map(drop));
    }
}

async fn a_finished_watch_is_removed_after_its_ttl(scene: &mut Scene) {
    let request = AddWatchRequest {
        finished_ttl: Some(prost_types::Duration::default()),
        ..scene.request(after(Duration::ZERO))
    };
    let id = scene
        .try_add(request)
        .await
        .unwrap()
        .watch
        .unwrap()
        .watch_id;
    match scene.recorder.first(id, "removed").await.kind {
        Some(Kind::Removed(removed)) => assert_eq!(removed.request_id, ""),
        other => panic!("{other:?}"),
    }
    let request = AddWatchRequest {
        finished_ttl: Some(crate::common::millis(50)),
        ..scene.request(after(Duration::ZERO))
    };
    let id = scene
        .try_add(request)
        .await
        .unwrap()
        .watch
        .unwrap()
        .watch_id;
    let closed = scene.recorder.first(id, "closed").await;
    let removed = scene.recorder.first(id, "removed").await;
    assert!(removed.monotonic_ns >= closed.monotonic_ns + 50_000_000);
}

async fn lists_have_pages_and_filters(scene: &mut Scene) {
    for number in 0..7_u64 {
        let parity = if number % 2 == 0 { "even" } else { "odd" };
        let spec = if number < 6 {
            never()
        } else {
            after(Duration::ZERO)
        };
        let request = AddWatchRequest {
            labels: [("parity".to_owned(), parity.to_owned())].into(),
            user_data: number,
            ..scene.request(spec)
        };
        scene.try_add(request).await.unwrap();
    }
    scene
        .recorder
        .find("the timer's end", |e| {
            matches!(e.kind, Some(Kind::Closed(_)))
        })
        .await;
    let even = ListWatchesRequest {
        labels: [("parity".to_owned(), "even".to_owned())].into(),
        ..ListWatchesRequest::default()
    };
    assert_eq!(
        list(scene, ListWatchesRequest::default()).await,
        [0, 1, 2, 3, 4, 5, 6]
    );
    assert_eq!(list(scene, even.clone()).await, [0, 2, 4, 6]);
    let open_only = ListWatchesRequest {
        open_only: true,
        ..even
    };
    assert_eq!(list(scene, open_only).await, [0, 2, 4]);
    let processes = ListWatchesRequest {
        watch_kinds: vec!["process".into()],
        ..ListWatchesRequest::default()
    };
    assert!(list(scene, processes).await.is_empty());
}

/// Returns the user_data of all pages, with two watches on each page.
async fn list(scene: &Scene, mut request: ListWatchesRequest) -> Vec<u64> {
    request.r#loop = Some(scene.target.clone());
    request.page_size = 2;
    let mut all: Vec<Watch> = Vec::new();
    loop {
        let answer = scene
            .daemon
            .watches()
            .list_watches(request.clone())
            .await
            .unwrap();
        let answer = answer.into_inner();
        assert!(answer.watches.len() <= 2);
        all.extend(answer.watches);
        if answer.next_page_token.is_empty() {
            break;
        }
        request.page_token = answer.next_page_token;
    }
    assert!(all.is_sorted_by_key(|watch| watch.watch_id));
    all.iter().map(|watch| watch.user_data).collect()
}

async fn requests_out_of_range_are_refused(scene: &mut Scene) {
    let with = |change: fn(&mut AddWatchRequest)| {
        let mut request = scene.request(never());
        change(&mut request);
        request
    };
    let label = |n: usize| (format!("k{n}"), String::new());
    let mut many = with(|_| {});
    many.labels = (0..17).map(label).collect();
    for (request, field) in [
        (with(|r| r.spec = None), "spec"),
        (with(|r| r.name = "no spaces".into()), "name"),
        (with(|r| r.name = "build@2".into()), "name"),
        (with(|r| r.name = ".dot-first".into()), "name"),
        (with(|r| r.name = "x".repeat(129)), "name"),
        (
            with(|r| drop(r.labels.insert("k".repeat(129), String::new()))),
            "labels",
        ),
        (many, "labels"),
        (with(|r| r.request_id = "x".repeat(129)), "request_id"),
        (with(|r| r.if_exists = 99), "if_exists"),
        (with(|r| r.lifetime = 99), "lifetime"),
        (
            with(|r| r.finished_ttl = Some(seconds(31 * 86_400))),
            "finished_ttl",
        ),
    ] {
        let refusal = scene.daemon.watches().add_watch(request).await;
        let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
        assert!(bad.fields[0].starts_with(field), "{bad:?} for {field}");
    }
    assert_eq!(scene.open_watches().await, 0);
}
