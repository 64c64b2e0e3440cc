//! Who kills the daemon, and who asks it whether it lives.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use evloopd::proto::GetStatusRequest;
use evloopd::proto::admin_service_client::AdminServiceClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::Site;
use crate::common::{PATIENCE, connect_later, lives};

/// A generator of numbers: splitmix64.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What ends in one round.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Victim {
    /// The daemon: its keeper starts the next life.
    Daemon,
}

/// From when on a life's time is counted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Since {
    /// It takes over from the life before.
    Birth,
    /// It serves.
    Answer,
}

/// One death.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) victim: Victim,
    pub(crate) since: Since,
    /// How long the life lasts.
    pub(crate) age: Duration,
}

impl Round {
    /// The end of a life that serves for so long.
    pub(crate) fn after(age: Duration) -> Self {
        Self {
            victim: Victim::Daemon,
            since: Since::Answer,
            age,
        }
    }

    pub(crate) fn next(random: &mut Random) -> Self {
        let (since, micros) = match random.below(10) {
            0..2 => (Since::Birth, random.below(30_000)),
            2..4 => (Since::Birth, random.below(400_000)),
            4..6 => (Since::Answer, random.below(50_000)),
            _ => (Since::Answer, random.below(1_200_000)),
        };
        Self {
            since,
            ..Self::after(Duration::from_micros(micros))
        }
    }
}

/// Kills the daemon once in each round, on a thread of its own.
pub(crate) fn kill_all(site: &Site, rounds: &[Round]) {
    let mut last = None;
    for round in rounds {
        let Some(life) = next_life(site, last) else {
            return;
        };
        if let Since::Answer = round.since
            && !has_answered(site)
        {
            return;
        }
        std::thread::sleep(round.age);
        if site.is_frozen() || site.is_over() {
            return;
        }
        match round.victim {
            Victim::Daemon => {
                // The clock is read before: no answer of the next life can be older.
                site.deaths.lock().push(Instant::now());
                kill(life, Signal::SIGKILL).unwrap();
            }
        }
        last = Some(life);
    }
    next_life(site, last);
}

/// Waits until the present life has answered. Returns false if a check has failed.
fn has_answered(site: &Site) -> bool {
    let present = site.deaths_so_far() as u64 + 1;
    let begun = Instant::now();
    while site.answered.load(Ordering::Relaxed) < present {
        if site.is_frozen() || site.is_over() {
            return false;
        }
        assert!(begun.elapsed() < PATIENCE, "life {present} never answers");
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Waits for a life after that one. `None`: a check has failed.
fn next_life(site: &Site, last: Option<Pid>) -> Option<Pid> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE && !site.is_frozen() && !site.is_over() {
        let life = lives::life(site.keeper).filter(|life| Some(*life) != last);
        if life.is_some() {
            return life;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    assert!(begun.elapsed() < PATIENCE, "no next life");
    None
}

/// Asks the daemon again and again over an old and over a new connection, and notes when a new life has
/// given its first answer. Ends with the site.
pub(crate) async fn ask(site: &Site) {
    let old = connect_later(&site.socket);
    for number in 0_u64.. {
        if site.is_closed() {
            return;
        }
        let channel = match number % 2 {
            0 => old.clone(),
            _ => connect_later(&site.socket),
        };
        let what = ["get_status, old connection", "get_status, new connection"];
        let what = what[usize::from(number % 2 == 1)];
        let mut admin = AdminServiceClient::new(channel);
        let answer = admin.get_status(GetStatusRequest {});
        match tokio::time::timeout(crate::stuck::LIMIT, answer).await {
            Ok(Ok(answer)) => {
                site.answers.fetch_add(1, Ordering::Relaxed);
                let keeper = answer.into_inner().keeper.expect("it has a keeper");
                if keeper.life > site.answered.fetch_max(keeper.life, Ordering::Relaxed) {
                    let before = usize::try_from(keeper.life - 2).unwrap();
                    let death = site.deaths.lock()[before];
                    site.figures.recovered(death.elapsed());
                    site.figures.count("lives that answered", 1);
                }
            }
            // The daemon was killed.
            Ok(Err(_)) => {}
            Err(_) => site.stuck(what).await,
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
