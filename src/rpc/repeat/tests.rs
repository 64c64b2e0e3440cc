use std::mem::ManuallyDrop;

use super::*;

fn key(id: &str) -> Key {
    Key::new(&Principal::uid(1), None, "Post", id)
}

fn first(attempt: Attempt) -> First {
    match attempt {
        Attempt::First(first, _) => first,
        Attempt::Repeat(_) => panic!("it is a repeat"),
    }
}

async fn repeated(attempt: Attempt) -> Answer {
    match attempt {
        Attempt::First(..) => panic!("it is no repeat"),
        Attempt::Repeat(answer) => answered(answer).await,
    }
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_and_another_content_is_refused() {
    let repeats = Repeats::new(4, Duration::from_secs(60), Budget::new(1 << 20));
    let begun = first(repeats.attempt(key("a"), 1).unwrap());
    assert!(repeats.attempt(key("a"), 2).is_err());
    let waiting = repeats.attempt(key("a"), 1).unwrap();
    begun.done(Ok(Bytes::from_static(b"x")));
    assert_eq!(&repeated(waiting).await.unwrap()[..], b"x");
    let later = repeats.attempt(key("a"), 1).unwrap();
    assert_eq!(&repeated(later).await.unwrap()[..], b"x");
}

#[tokio::test]
async fn a_refusal_is_kept_unless_it_may_pass() {
    let repeats = Repeats::new(4, Duration::from_secs(60), Budget::new(1 << 20));
    first(repeats.attempt(key("a"), 1).unwrap()).done(Err(Error::wrong_state("no")));
    assert!(
        repeated(repeats.attempt(key("a"), 1).unwrap())
            .await
            .is_err()
    );
    first(repeats.attempt(key("b"), 1).unwrap()).done(Err(Error::Draining));
    first(repeats.attempt(key("b"), 1).unwrap());
}

#[tokio::test]
async fn later_lives_know_the_answers_and_what_was_under_way() {
    let arena = Arena::new().unwrap();
    let life = |arena, found| {
        let repeats = Repeats::new(8, Duration::from_secs(60), Budget::new(1 << 20));
        repeats.that_survive(arena, found)
    };
    let own = |method: &str| Key::new(&Principal::uid(1), None, method, "own");
    // As a killed life leaves it.
    let repeats = ManuallyDrop::new(life(Arc::clone(&arena), Vec::new()));
    first(repeats.attempt(key("a"), 1).unwrap()).done(Ok(Bytes::from_static(b"x")));
    first(repeats.attempt(key("b"), 1).unwrap()).done(Err(Error::wrong_state("no")));
    let _posting = first(repeats.attempt(key("c"), 1).unwrap());
    let _removing = first(repeats.attempt(own("RemoveWatch"), 1).unwrap());
    let recovered = Arena::recover(arena.file().try_clone().unwrap(), None).unwrap();
    let (arena, found) = (recovered.arena, recovered.found);
    let repeats = life(arena, found);
    assert_eq!(
        &repeated(repeats.attempt(key("a"), 1).unwrap())
            .await
            .unwrap()[..],
        b"x"
    );
    assert!(repeats.attempt(key("a"), 2).is_err());
    first(repeats.attempt(key("b"), 1).unwrap());
    let unknown = repeated(repeats.attempt(key("c"), 1).unwrap()).await;
    assert!(matches!(unknown, Err(Error::OutcomeUnknown)), "{unknown:?}");
    first(repeats.attempt(own("RemoveWatch"), 1).unwrap());
}

#[tokio::test(start_paused = true)]
async fn the_window_is_bounded_by_number_and_time() {
    let repeats = Repeats::new(2, Duration::from_secs(60), Budget::new(1 << 20));
    let under_way = first(repeats.attempt(key("a"), 1).unwrap());
    first(repeats.attempt(key("b"), 1).unwrap()).done(Ok(Bytes::new()));
    // The oldest answer is removed, not the request under way.
    first(repeats.attempt(key("c"), 1).unwrap()).done(Ok(Bytes::new()));
    assert!(matches!(
        repeats.attempt(key("a"), 1),
        Ok(Attempt::Repeat(_))
    ));
    let also = first(repeats.attempt(key("b"), 1).unwrap());
    assert!(matches!(
        repeats.attempt(key("d"), 1),
        Err(Error::Limit { .. })
    ));
    under_way.done(Ok(Bytes::new()));
    also.done(Ok(Bytes::new()));
    tokio::time::advance(Duration::from_secs(61)).await;
    first(repeats.attempt(key("a"), 2).unwrap());
    assert_eq!(repeats.table.lock().order.len(), 1);
}

#[tokio::test]
async fn the_table_never_holds_more_than_it_may() {
    let repeats = Repeats::new(8, Duration::from_secs(60), Budget::new(1 << 20));
    for n in 0..100 {
        let refused = first(repeats.attempt(key(&format!("r{n}")), 1).unwrap());
        refused.done(Err(Error::Draining));
    }
    // Requests under way fill the table; a removed answer does not make room.
    let under_way: Vec<_> = (0..8)
        .map(|n| first(repeats.attempt(key(&format!("u{n}")), 1).unwrap()))
        .collect();
    let full = repeats.attempt(key("more"), 1);
    assert!(matches!(full, Err(Error::Limit { .. })));
    let table = repeats.table.lock();
    assert_eq!((table.entries.len(), table.order.len()), (8, 8));
    drop(table);
    drop(under_way);
}

#[tokio::test]
async fn answers_are_kept_by_their_bytes() {
    let budget = Budget::new(8 << 20);
    let repeats = Repeats::new(1000, Duration::from_secs(60), Arc::clone(&budget));
    let large = || Ok(Bytes::from(vec![0; 300 << 10]));
    for n in 0..50 {
        first(repeats.attempt(key(&format!("{n}")), 1).unwrap()).done(large());
        assert!(budget.total() <= 1 << 20);
    }
    assert_eq!(repeats.table.lock().entries.len(), 3);
    assert_eq!(budget.held(Use::Answers), 3 * ((300 << 10) + ENTRY));
    // The newest answers are there; one that is too large for the table is returned, but not
    // kept.
    assert!(
        repeated(repeats.attempt(key("49"), 1).unwrap())
            .await
            .is_ok()
    );
    let huge = first(repeats.attempt(key("huge"), 1).unwrap());
    let waits = repeats.attempt(key("huge"), 1).unwrap();
    huge.done(Ok(Bytes::from(vec![0; 2 << 20])));
    assert!(repeated(waits).await.is_ok());
    first(repeats.attempt(key("huge"), 1).unwrap());
}

#[tokio::test]
async fn each_context_has_its_own_ids() {
    let repeats = Repeats::new(4, Duration::from_secs(60), Budget::new(1 << 20));
    let of = |session: &str| {
        let context = ContextKey::Session(Principal::uid(1), session.to_owned());
        Key::new(&Principal::uid(1), Some(&context), "Post", "a")
    };
    first(repeats.attempt(of("x"), 1).unwrap()).done(Ok(Bytes::new()));
    first(repeats.attempt(of("y"), 1).unwrap()).done(Ok(Bytes::new()));
    assert!(matches!(
        repeats.attempt(of("x"), 1),
        Ok(Attempt::Repeat(_))
    ));
}
