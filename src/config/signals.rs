//! Names and numbers of signals, as in signal(7).

use nix::libc;
use nix::sys::signal::Signal;

/// Returns the number of a signal: `SIGUSR1`, `SIGRTMIN`, `SIGRTMIN+3`, `SIGRTMAX-1`.
///
/// `SIGRTMIN` is that of the C library, which reserves the first few real-time signals for itself.
#[must_use]
pub fn signal_number(name: &str) -> Option<i32> {
    if let Ok(signal) = name.parse::<Signal>() {
        return Some(signal as i32);
    }
    let (min, max) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let number = if let Some(rest) = name.strip_prefix("SIGRTMIN") {
        min.checked_add(offset(rest, '+')?)?
    } else {
        max.checked_sub(offset(name.strip_prefix("SIGRTMAX")?, '-')?)?
    };
    (min..=max).contains(&number).then_some(number)
}

/// Reads the text after `SIGRTMIN` or `SIGRTMAX`: nothing, or a sign and decimal digits.
fn offset(rest: &str, sign: char) -> Option<i32> {
    if rest.is_empty() {
        return Some(0);
    }
    let digits = rest.strip_prefix(sign)?;
    let decimal = digits.bytes().all(|b| b.is_ascii_digit());
    decimal.then(|| digits.parse().ok()).flatten()
}

/// Returns the name of a signal, of a real-time signal as `SIGRTMIN+n`; none if there is no such
/// signal.
#[must_use]
pub fn signal_name(number: i32) -> Option<String> {
    if let Ok(signal) = Signal::try_from(number) {
        return Some(signal.as_str().to_owned());
    }
    let (min, max) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    match number.checked_sub(min)? {
        0 => Some("SIGRTMIN".to_owned()),
        n if (min..=max).contains(&number) => Some(format!("SIGRTMIN+{n}")),
        _ => None,
    }
}

/// Returns why a signal cannot be watched; none if it can.
#[must_use]
pub fn unwatchable(number: i32) -> Option<&'static str> {
    match Signal::try_from(number).ok()? {
        Signal::SIGCHLD => Some("the daemon reaps its children with it"),
        Signal::SIGTERM | Signal::SIGINT => Some("it ends the daemon"),
        Signal::SIGHUP => Some("the daemon uses it itself"),
        Signal::SIGKILL | Signal::SIGSTOP => Some("no process can catch it"),
        Signal::SIGPIPE => Some("the daemon ignores it: writes report EPIPE instead"),
        Signal::SIGSEGV
        | Signal::SIGBUS
        | Signal::SIGFPE
        | Signal::SIGILL
        | Signal::SIGTRAP
        | Signal::SIGSYS
        | Signal::SIGABRT => Some("it reports a fault of the daemon itself"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_one_name_that_leads_back_to_it() {
        let mut named = 0;
        for number in 0..=128 {
            if let Some(name) = signal_name(number) {
                assert_eq!(signal_number(&name), Some(number), "{name}");
                named += 1;
            }
        }
        assert!(named > 50, "{named} names");
        assert_eq!(signal_number("SIGRTMAX-0"), signal_number("SIGRTMAX"));
    }

    #[test]
    fn what_is_no_signal_has_no_number() {
        for name in [
            "",
            "USR1",
            "SIGNOPE",
            "SIGRTMIN+",
            "SIGRTMIN+-1",
            "SIGRTMIN++1",
            "SIGRTMIN-1",
            "SIGRTMIN+31",
            "SIGRTMAX+1",
            "SIGRTMIN+99999999999",
        ] {
            assert_eq!(signal_number(name), None, "{name}");
        }
        assert_eq!(signal_name(0), None);
        assert_eq!(signal_name(32), None);
        assert_eq!(signal_name(i32::MIN), None);
    }
}
