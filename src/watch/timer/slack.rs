//! Timers that need not be exact fire together.

/// Returns the time within `slack` nanoseconds from `at` on that is a multiple of the largest power
/// of two. So timers with slack agree on a time, without knowing of one another.
pub(super) const fn within(at: u64, slack: u64) -> u64 {
    if slack == 0 {
        return at;
    }
    let latest = at.saturating_add(slack);
    // The bits above the highest one that differs are common to all times in between.
    let differing = at.saturating_sub(1) ^ latest;
    let up_to_it = u64::MAX >> differing.leading_zeros();
    latest & !(up_to_it >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_within_the_slack_and_the_roundest_there() {
        let mut seed = 1u64;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (at, slack) = (seed >> 20, (seed >> 40) & 0xfff);
            let chosen = within(at, slack);
            assert!(
                at <= chosen && chosen <= at + slack,
                "{at} {slack} {chosen}"
            );
            let zeros = chosen.trailing_zeros();
            // No rounder time is within the slack.
            let step = 1u64 << (zeros + 1);
            assert!(
                slack == 0 || at.next_multiple_of(step) > at + slack,
                "{at} {slack} {chosen}"
            );
        }
    }

    #[test]
    fn timers_of_about_the_same_time_agree_on_one() {
        const SECOND: u64 = 1_000_000_000;
        let base = 1_000_000 * SECOND;
        let chosen: std::collections::BTreeSet<u64> = (0..1_000)
            .map(|n| within(base + n * SECOND / 100, 60 * SECOND))
            .collect();
        assert!(chosen.len() <= 2, "{chosen:?}");
    }
}
