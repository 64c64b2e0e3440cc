//! The daemon is killed under a mixed load again and again, at another instant each time: nothing is
//! lost and nothing is doubled.
//!
//! `EVLOOPD_MURDERS` is the number of deaths, and `EVLOOPD_MURDERS_SEED` chooses their instants. A
//! thousand take about 15 minutes:
//! `EVLOOPD_MURDERS=1000 cargo test --test murders -- --nocapture`

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]
// Not every test binary uses all helpers.
#![allow(dead_code)]

mod campaign;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod field;
mod figures;
mod killer;
mod loads;
mod reader;
mod rest;
mod stuck;

use killer::Random;

/// Deaths of one daemon. Then all is closed, and the next daemon begins.
const CAMPAIGN: u64 = 50;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().expect(name),
        Err(_) => default,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_loses_nothing() {
    let (deaths, seed) = (
        number("EVLOOPD_MURDERS", 8),
        number("EVLOOPD_MURDERS_SEED", 1),
    );
    println!("{deaths} deaths, seed {seed}");
    let mut all = figures::Totals::default();
    let mut done = 0;
    for campaign in 0.. {
        if done == deaths {
            break;
        }
        let now = CAMPAIGN.min(deaths - done);
        let random = Random::new(seed.wrapping_mul(1000) + campaign);
        println!("campaign {campaign}: deaths {done} to {}", done + now);
        campaign::run(now, random, &mut all).await;
        done += now;
        println!("{all}");
    }
}
