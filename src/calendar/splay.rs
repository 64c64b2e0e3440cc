//! A delay that is spread over hosts and names, and is the same each time.

use std::time::Duration;

/// Returns a delay less than `max`, which depends on the host and the name only: it is the same
/// after a restart, a reload and an update of the program.
///
/// It is the 64-bit FNV-1a hash of the length of `host_id` (eight bytes, little-endian), `host_id`
/// and `name`, mixed by the finalizer of `MurmurHash3`, as a fraction of `max`. Zero for a `max` of
/// zero.
#[must_use]
pub fn splay(host_id: &[u8], name: &str, max: Duration) -> Duration {
    let length = u64::try_from(host_id.len()).unwrap_or(u64::MAX);
    let hash = [&length.to_le_bytes(), host_id, name.as_bytes()]
        .into_iter()
        .fold(FNV_OFFSET, fnv1a);
    let max = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
    let part = (u128::from(mixed(hash)) * u128::from(max)) >> 64;
    Duration::from_nanos(u64::try_from(part).unwrap_or(0))
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME)
    })
}

/// Spreads the hash over all bits: the high ones of FNV differ little between short names.
const fn mixed(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        for (text, hash) in [
            ("", 0xcbf2_9ce4_8422_2325),
            ("a", 0xaf63_dc4c_8601_ec8c),
            ("foobar", 0x8594_4171_f739_67e8),
        ] {
            assert_eq!(fnv1a(FNV_OFFSET, text.as_bytes()), hash, "{text}");
        }
    }

    /// These must not change with a version: a job would be late or twice on the day of the update.
    #[test]
    fn a_delay_is_the_same_in_every_version() {
        let hour = Duration::from_secs(3_600);
        let delay = |host: &str, name| splay(host.as_bytes(), name, hour).as_nanos();
        assert_eq!(delay("a", "backup"), 3_521_479_933_382);
        assert_eq!(delay("b", "backup"), 2_387_646_650_324);
        assert_eq!(delay("a", "rotate"), 339_418_410_596);
    }

    #[test]
    fn host_and_name_are_not_confused() {
        let hour = Duration::from_secs(3_600);
        assert_ne!(splay(b"ab", "c", hour), splay(b"a", "bc", hour));
    }

    #[test]
    fn delays_are_below_the_bound_and_spread() {
        let max = Duration::from_secs(100);
        let mut of_second = [0; 100];
        for number in 0..10_000 {
            let delay = splay(b"0123456789abcdef", &format!("job-{number}"), max);
            of_second[usize::try_from(delay.as_secs()).unwrap()] += 1;
        }
        assert!(of_second.iter().all(|count| (60..=140).contains(count)));
        assert_eq!(splay(b"a", "b", Duration::ZERO), Duration::ZERO);
        assert!(splay(b"a", "b", Duration::MAX) < Duration::from_nanos(u64::MAX));
    }
}
