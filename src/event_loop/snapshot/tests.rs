//! Compares snapshots with full copies of the watches.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Add,
    Change(usize),
    Remove(usize),
    Open,
    Read(usize, usize),
    End(usize),
    Tidy(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Add),
        6 => any::<usize>().prop_map(Step::Change),
        4 => any::<usize>().prop_map(Step::Remove),
        2 => Just(Step::Open),
        3 => (any::<usize>(), 0..60usize).prop_map(|(which, bytes)| Step::Read(which, bytes)),
        1 => any::<usize>().prop_map(Step::End),
        1 => (0..3usize).prop_map(Step::Tidy),
    ];
    prop::collection::vec(step, 1..120)
}

/// Returns a watch whose `user_data` identifies its state.
fn watch(id: u64, user_data: u64) -> proto::Watch {
    proto::Watch {
        watch_id: id,
        user_data,
        ..proto::Watch::default()
    }
}

type Live = BTreeMap<u64, u64>;

fn read(snapshots: &mut Snapshots, live: &Live, number: u64, bytes: usize) -> Part {
    let next = |after: u64| live.range(after + 1..).next().map(|(id, _)| *id);
    let view = |id: u64| live.get(&id).map(|data| watch(id, *data));
    let all: Wanted = Arc::new(|_| true);
    snapshots.part(number, bytes, &all, next, view).unwrap()
}

fn check_part(part: &Part, rest: &mut Live) {
    for watch in &part.watches {
        let (id, data) = rest.pop_first().unwrap();
        assert_eq!((watch.watch_id, watch.user_data), (id, data));
    }
    assert!(!part.last || rest.is_empty(), "{rest:?}");
}

fn keep(snapshots: &mut Snapshots, id: u64, data: u64) {
    if let Some(wanted_by) = snapshots.wanted_by(id) {
        snapshots.keep(id, &watch(id, data), wanted_by);
    }
}

proptest! {
    #[test]
    fn every_snapshot_tells_what_there_was_when_it_was_opened(steps in steps()) {
        let budget = Budget::new(1 << 30);
        let mut snapshots = Snapshots::new(&budget);
        let (mut live, mut last, mut data) = (Live::new(), 0, 0);
        // The watches that each snapshot has yet to return.
        let mut open: Vec<(u64, Live)> = Vec::new();
        for step in steps {
            data += 1;
            let at = |index: usize| live.keys().nth(index % live.len().max(1)).copied();
            match step {
                Step::Add => {
                    last += 1;
                    live.insert(last, data);
                }
                Step::Change(index) => if let Some(id) = at(index) {
                    keep(&mut snapshots, id, live[&id]);
                    live.insert(id, data);
                },
                Step::Remove(index) => if let Some(id) = at(index) {
                    keep(&mut snapshots, id, live[&id]);
                    live.remove(&id);
                },
                Step::Open => open.push((snapshots.open(last), live.clone())),
                Step::Read(index, bytes) if !open.is_empty() => {
                    let index = index % open.len();
                    let (number, rest) = &mut open[index];
                    let part = read(&mut snapshots, &live, *number, bytes);
                    check_part(&part, rest);
                    if part.last {
                        open.swap_remove(index);
                    }
                }
                Step::End(index) if !open.is_empty() => {
                    let (number, _) = open.swap_remove(index % open.len());
                    snapshots.end(number);
                }
                Step::Tidy(looks) => snapshots.release_kept(looks),
                _ => {}
            }
        }
        // The loop closes: from here on snapshots consist of kept watches.
        for (id, data) in &live {
            keep(&mut snapshots, *id, *data);
        }
        for (number, mut rest) in open {
            let mut last = false;
            while !last {
                let part = read(&mut snapshots, &Live::new(), number, 40);
                check_part(&part, &mut rest);
                last = part.last;
            }
        }
        snapshots.release_kept(usize::MAX);
        prop_assert!(snapshots.open.is_empty() && snapshots.kept.is_empty());
        prop_assert_eq!(budget.total(), 0);
    }
}

#[test]
fn without_memory_for_what_is_kept_the_snapshot_fails() {
    let budget = Budget::new(1 << 20);
    let mut snapshots = Snapshots::new(&budget);
    let _others = budget.take(Use::Answers, 1 << 19).unwrap();
    let (unhurt, number) = (snapshots.open(1), snapshots.open(2));
    keep(&mut snapshots, 2, 7);
    let all: Wanted = Arc::new(|_| true);
    let failed = snapshots.part(number, 100, &all, |_| None, |_| None);
    assert!(matches!(
        failed,
        Err(Error::Limit {
            limit: "limits.memory",
            ..
        })
    ));
    assert!(
        snapshots
            .part(unhurt, 100, &all, |_| None, |_| None)
            .is_ok()
    );
}
