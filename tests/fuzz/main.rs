//! Random input for whatever parses bytes from outside: requests, handover datagrams, the records of
//! TLS, what programs write to terminals, calendar expressions and times, configuration files, and the
//! search for bytes that were received before.
//!
//! Each target runs a fixed number of cases from a fixed seed. `EVLOOPD_FUZZ_SECONDS=600 cargo test
//! --test fuzz` goes on with random seeds for that long, each target by itself. A failure shows the
//! smallest input that was found; it belongs into the target as a case of its own.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{
    Config, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRng, TestRunner,
};

#[path = "../common/mod.rs"]
mod common;

mod calendar;
mod configuration;
mod handover;
mod look_back;
mod messages;
mod requests;
mod screen;
mod tls;

/// Runs `cases` cases from the fixed seed, then others as long as the environment says.
fn fuzz<S: Strategy>(cases: u32, input: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let seconds = std::env::var("EVLOOPD_FUZZ_SECONDS");
    let seconds = seconds.map_or(0, |seconds| seconds.parse().expect("a number of seconds"));
    let end = Instant::now() + Duration::from_secs(seconds);
    let config = |rng_seed| Config {
        cases,
        failure_persistence: None,
        rng_seed,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config(RngSeed::Random), rng);
    loop {
        match runner.run(input, &test) {
            Ok(()) => {}
            Err(TestError::Fail(why, input)) => panic!("{why}\nthe smallest input: {input:#?}"),
            Err(error) => panic!("{error}"),
        }
        if Instant::now() >= end {
            return;
        }
        runner = TestRunner::new(config(RngSeed::Random));
    }
}
