//! Tests of the slots without the socket.

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::*;
use crate::handover::descriptors;
use crate::state::tests::killed;
use crate::state::{Arena, Inherited};

fn peer(uid: u32) -> Peer {
    Peer {
        principal: Principal::uid(uid),
        uid,
        gid: uid,
        pid: 0,
        process: None,
        administrator: false,
    }
}

fn pipe() -> (OwnedFd, pipe::Receiver) {
    let (sender, receiver) = pipe::pipe().unwrap();
    (sender.into_blocking_fd().unwrap(), receiver)
}

async fn assert_closed(mut receiver: pipe::Receiver) {
    assert_eq!(receiver.read(&mut [0]).await.unwrap(), 0);
}

fn not_found(result: Result<Claimed>) -> bool {
    matches!(result, Err(Error::SlotNotFound { field }) if field == "spec.fd.slot")
}

#[tokio::test]
async fn a_slot_is_claimed_once_and_by_its_owner() {
    let slots = Slots::new(4, SLOT_TTL);
    let (owner, other) = (peer(1), peer(2));
    let (fd, receiver) = pipe();
    let slot = slots.give(&owner, None, vec![fd]).unwrap()[0];
    let claim = |principal, slot: &[u8]| slots.claim("spec.fd.slot", principal, slot);

    assert!(not_found(claim(&other, &slot)));
    assert!(not_found(claim(&owner, &[0; SLOT_BYTES])));
    let short = claim(&owner, &slot[1..]).unwrap_err();
    assert_eq!(
        short.to_string(),
        "spec.fd.slot: must have 16 bytes, not 15"
    );

    let claimed = claim(&owner, &slot).unwrap();
    assert!(not_found(claim(&owner, &slot)));
    let (fd, _) = claimed.keep();
    assert!(slots.is_empty());
    assert!(not_found(claim(&owner, &slot)));
    drop(fd);
    assert_closed(receiver).await;
}

#[tokio::test(start_paused = true)]
async fn expired_slots_are_closed_in_time() {
    let slots = Slots::new(4, SLOT_TTL);
    let owner = peer(1);
    let start = Instant::now();
    let expiry = Arc::clone(&slots);
    let expiry = tokio::spawn(async move { expiry.expire().await });
    let (fd, receiver) = pipe();
    let slot = slots.give(&owner, None, vec![fd]).unwrap()[0];
    assert_closed(receiver).await;
    assert_eq!(start.elapsed().as_secs(), SLOT_TTL.as_secs());
    assert!(slots.is_empty());
    assert!(not_found(slots.claim("spec.fd.slot", &owner, &slot)));
    expiry.abort();
}

#[tokio::test(start_paused = true)]
async fn a_slot_beside_undecided_claims_expires_too() {
    let slots = Slots::new(4, SLOT_TTL);
    let owner = peer(1);
    let (fd, _receiver) = pipe();
    let slot = slots.give(&owner, None, vec![fd]).unwrap()[0];
    let undecided = slots.claim("spec.fd.slot", &owner, &slot).unwrap();
    let expiry = Arc::clone(&slots);
    let expiry = tokio::spawn(async move { expiry.expire().await });
    // `expire` runs and finds no expired slot.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    let (fd, receiver) = pipe();
    slots.give(&owner, None, vec![fd]).unwrap();
    assert_closed(receiver).await;
    drop(undecided);
    expiry.abort();
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_not_kept_goes_back_with_its_deadline() {
    let slots = Slots::new(1, SLOT_TTL);
    let owner = peer(1);
    let expiry = Arc::clone(&slots);
    let expiry = tokio::spawn(async move { expiry.expire().await });
    let start = Instant::now();
    let (fd, receiver) = pipe();
    let slot = slots.give(&owner, None, vec![fd]).unwrap()[0];
    let claim = || slots.claim("spec.fd.slot", &owner, &slot);
    drop(claim().unwrap());
    let claimed = claim().unwrap();

    // While it is claimed but not kept, the slot stays in use and does not expire.
    tokio::time::sleep(SLOT_TTL * 2).await;
    assert_eq!(slots.len(), 1);
    drop(claimed);
    assert!(not_found(claim()));
    assert_closed(receiver).await;
    assert_eq!(start.elapsed().as_secs(), 2 * SLOT_TTL.as_secs());
    expiry.abort();
}

#[tokio::test]
async fn beyond_the_limit_all_are_closed() {
    let slots = Slots::new(2, SLOT_TTL);
    let owner = peer(1);
    let (first, _first) = pipe();
    slots.give(&owner, None, vec![first]).unwrap();
    let ((a, a_end), (b, b_end)) = (pipe(), pipe());
    let error = slots.give(&owner, None, vec![a, b]).unwrap_err();
    assert!(matches!(
        error,
        Error::Limit {
            limit: "limits.slots",
            value: 2,
            ..
        }
    ));
    assert_closed(a_end).await;
    assert_closed(b_end).await;
    assert_eq!(slots.len(), 1);
}

const MINE: Slot = [7; SLOT_BYTES];

#[tokio::test(start_paused = true)]
async fn a_number_of_the_clients_own_may_come_after_who_names_it() {
    let slots = Slots::new(8, SLOT_TTL);
    let (owner, other) = (peer(1), peer(2));
    let claim = |peer| slots.claim("spec.fd.slot", peer, &MINE);
    let wait = |peer: Peer| {
        let slots = Arc::clone(&slots);
        async move { slots.arrived(&peer, [MINE.as_slice()].into_iter()).await }
    };
    let start = Instant::now();
    let waiting = [
        tokio::spawn(wait(owner.clone())),
        tokio::spawn(wait(owner.clone())),
    ];
    let stranger = tokio::spawn(wait(other.clone()));
    let gone = tokio::spawn(wait(peer(3)));
    tokio::task::yield_now().await;
    assert_eq!(slots.table.lock().awaited(), 3);
    gone.abort();
    gone.await.unwrap_err();
    assert_eq!(
        slots.table.lock().awaited(),
        2,
        "who goes waits for nothing"
    );

    let (fd, receiver) = pipe();
    assert_eq!(slots.give(&owner, Some(&[MINE]), vec![fd]).unwrap(), [MINE]);
    for waiting in waiting {
        waiting.await.unwrap();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(not_found(claim(&other)));
    drop(claim(&owner).unwrap().keep());
    assert_closed(receiver).await;
    stranger.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), SLOT_WAIT.as_secs());
    assert!(not_found(claim(&other)));

    // The wait has one bound for all slots, however many of them never arrive.
    let none = [[1; SLOT_BYTES], [2; SLOT_BYTES], [3; SLOT_BYTES]];
    slots
        .arrived(&owner, none.iter().map(<[u8; SLOT_BYTES]>::as_slice))
        .await;
    assert_eq!(start.elapsed().as_secs(), 2 * SLOT_WAIT.as_secs());
    assert_eq!((slots.len(), slots.table.lock().awaited()), (0, 0));
}

#[tokio::test]
async fn a_number_in_use_is_refused_and_another_clients_is_not_concerned() {
    let slots = Slots::new(8, SLOT_TTL);
    let (owner, other) = (peer(1), peer(2));
    let give = |peer: &Peer, own: &[Slot]| {
        let (fds, ends): (Vec<_>, Vec<_>) = own.iter().map(|_| pipe()).unzip();
        (slots.give(peer, Some(own), fds), ends)
    };
    let (given, _end) = give(&owner, &[MINE]);
    given.unwrap();
    let unused = [9; SLOT_BYTES];
    for own in [&[unused, MINE][..], &[unused, unused][..]] {
        let (refused, ends) = give(&owner, own);
        assert!(matches!(
            refused,
            Err(Error::NameTaken { what: "slot", .. })
        ));
        for end in ends {
            assert_closed(end).await;
        }
    }
    let claimed = slots.claim("slot", &owner, &MINE).unwrap();
    let (refused, _) = give(&owner, &[MINE]);
    refused.unwrap_err();
    drop(claimed.keep());
    give(&owner, &[MINE]).0.unwrap();
    give(&other, &[MINE]).0.unwrap();
    assert_eq!(slots.len(), 2);
}

#[tokio::test]
async fn one_principal_leaves_slots_to_others() {
    let slots = Slots::new(4, SLOT_TTL);
    let (owner, other) = (peer(1), peer(2));
    let give = |peer: &Peer| slots.give(peer, None, vec![pipe().0]);
    let mine: Vec<Slot> = (0..3).map(|_| give(&owner).unwrap()[0]).collect();
    assert!(matches!(give(&owner), Err(Error::Limit { value: 3, .. })));
    assert!(slots.reserve(&owner.principal).is_err());
    give(&other).unwrap();
    assert!(matches!(
        give(&other),
        Err(Error::Limit {
            limit: "limits.slots",
            value: 4,
            ..
        })
    ));
    drop(slots.claim("slot", &owner, &mine[0]).unwrap().keep());
    give(&owner).unwrap();
}

#[tokio::test]
async fn a_later_life_has_the_slots_that_nobody_took_for_their_remaining_time() {
    for ttl in [SLOT_TTL, Duration::ZERO] {
        let arena = Arena::new().unwrap();
        let mut none = Inherited::default();
        let make =
            |arena, found, inherited: &mut _| Slots::that_survive(8, ttl, arena, found, inherited);
        let slots = make(Arc::clone(&arena), Vec::new(), &mut none);
        let (owner, other) = (peer(1), peer(2));
        let give = |own: Option<&[Slot]>| {
            let (fd, receiver) = pipe();
            (slots.give(&owner, own, vec![fd]).unwrap()[0], receiver)
        };
        let ((issued, mut end), (own, _end), (taken, _other)) =
            (give(None), give(Some(&[MINE])), give(None));
        let claimed = slots.claim("slot", &owner, &taken);
        // Not if its time is over.
        drop(claimed.map(Claimed::keep));
        let deadline = slots.next_deadline().unwrap();

        let (arena, found) = killed(&arena);
        let numbers: Vec<_> = descriptors(&found).iter().map(|fd| fd.number).collect();
        // The dead life closes nothing.
        let _dead = std::mem::ManuallyDrop::new(slots);
        let mut inherited = Inherited::own(numbers);
        let slots = make(Arc::clone(&arena), found, &mut inherited);
        drop(inherited);
        let claim = |peer, slot: &Slot| slots.claim("spec.fd.slot", peer, slot);
        assert!(not_found(claim(&owner, &taken)));
        if ttl.is_zero() {
            assert!(slots.is_empty());
            assert!(descriptors(&killed(&arena).1).is_empty());
            assert_closed(end).await;
            continue;
        }
        assert_eq!(slots.len(), 2);
        let now = slots.next_deadline().unwrap();
        let apart = now.max(deadline) - now.min(deadline);
        assert!(apart < Duration::from_millis(10), "{apart:?}");
        assert!(not_found(claim(&other, &own)) && not_found(claim(&other, &issued)));
        drop(claim(&owner, &own).unwrap().keep());
        let (fd, _) = claim(&owner, &issued).unwrap().keep();
        rustix::io::write(&fd, b"x").unwrap();
        assert_eq!(end.read(&mut [0]).await.unwrap(), 1);
        assert!(descriptors(&killed(&arena).1).is_empty());
    }
}
