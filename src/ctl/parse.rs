//! Reads the values of arguments and options.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use jiff::civil::{DateTime, Time};
use jiff::{Timestamp, ZonedDateTime};

use crate::config::{Limit, Resource, UMASK_MAX, signal_name, signal_number};
use crate::proto::{
    self, Cursor, InetAddress, LoopRef, SocketAddress, UnixAddress, WatchRef, loop_ref,
    socket_address, watch_ref,
};

/// Reads a loop: its name, or its id as `@7`.
pub(super) fn loop_ref(text: &str) -> Result<LoopRef, String> {
    let by = match text.strip_prefix('@') {
        Some(digits) => loop_ref::Ref::LoopId(id(digits)?),
        None => loop_ref::Ref::Name(not_empty(text)?),
    };
    Ok(LoopRef { r#ref: Some(by) })
}

/// Reads a watch: its name, or its id as `@7`. No name begins with `@`.
pub(super) fn watch_ref(text: &str) -> Result<WatchRef, String> {
    match text.strip_prefix('@') {
        Some(digits) => Ok(by_id(id(digits)?)),
        None => Ok(WatchRef {
            r#ref: Some(watch_ref::Ref::Name(not_empty(text)?)),
        }),
    }
}

/// Reads the id of a watch, `7` or `@7`.
pub(super) fn watch_id(text: &str) -> Result<WatchRef, String> {
    Ok(by_id(id(text.strip_prefix('@').unwrap_or(text))?))
}

/// Returns the reference to the watch with this id.
pub(super) const fn by_id(id: u64) -> WatchRef {
    WatchRef {
        r#ref: Some(watch_ref::Ref::WatchId(id)),
    }
}

/// Returns the text from which [`watch_ref`] reads the same watch.
pub(super) fn watch_name(watch: &WatchRef) -> String {
    match &watch.r#ref {
        Some(watch_ref::Ref::WatchId(id)) => format!("@{id}"),
        Some(watch_ref::Ref::Name(name)) => name.clone(),
        None => String::new(),
    }
}

fn id(digits: &str) -> Result<u64, String> {
    let plain = digits.bytes().all(|c| c.is_ascii_digit());
    let id = digits.parse().ok().filter(|_| plain);
    id.ok_or_else(|| {
        format!("`{digits}` is not an id; a number is expected, as `evloopctl ps` shows it")
    })
}

/// Reads a name. An empty name is refused: it is a mistake, such as an unset variable of the shell.
pub(super) fn name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a name is needed; the text is empty".to_owned());
    }
    Ok(text.to_owned())
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a name, or an id as `@7`, is needed".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads `KEY=VALUE`. The value may be empty, and may contain `=`.
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is expected".to_owned()),
    }
}

/// Reads a variable of the environment, `KEY=VALUE`. Neither side has to be UTF-8.
pub(super) fn variable(text: &OsStr) -> Result<(OsString, OsString), String> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) if at > 0 => {
            let side = |bytes| OsStr::from_bytes(bytes).to_owned();
            Ok((side(&bytes[..at]), side(&bytes[at + 1..])))
        }
        _ => Err(
            "KEY=VALUE is expected; all variables of your environment are passed on anyway"
                .to_owned(),
        ),
    }
}

/// Reads a umask in octal digits, as the shell's `umask` takes it.
pub(super) fn umask(text: &str) -> Result<u32, String> {
    let bits = u32::from_str_radix(text, 8).ok();
    let bits = bits.filter(|bits| *bits <= UMASK_MAX);
    bits.ok_or_else(|| "octal digits are expected, 0 to 0777".to_owned())
}

/// Reads `NAME=SOFT[:HARD]`. Each limit is a number or `unlimited`; without HARD, it is the same as SOFT.
pub(super) fn limit(text: &str) -> Result<(Resource, Limit), String> {
    let (name, limit) = text.split_once('=').ok_or("NAME=SOFT[:HARD] is expected")?;
    Ok((name.parse()?, limit.parse()?))
}

/// Reads a cursor: `EPOCH:SEQ`, or `SEQ` alone for the current epoch.
pub(super) fn cursor(text: &str) -> Result<Cursor, String> {
    let (epoch, seq) = text.split_once(':').unwrap_or(("", text));
    let seq = seq
        .parse()
        .map_err(|_| "EPOCH:SEQ or SEQ is expected; SEQ is a number")?;
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if text.contains(':') && (epoch.len() != 32 || !epoch.bytes().all(hex)) {
        return Err("EPOCH is 32 lower-case hexadecimal digits".to_owned());
    }
    let epoch = epoch.to_owned();
    Ok(Cursor { epoch, seq })
}

/// Returns a cursor as `EPOCH:SEQ`.
pub(super) fn cursor_text(cursor: &Cursor) -> String {
    format!("{}:{}", cursor.epoch, cursor.seq)
}

/// Reads `5s`, `1.5s`, `1h 30m` or `100ms`; a number alone is seconds, as sleep(1) and timeout(1) take it.
pub(super) fn duration(text: &str) -> Result<prost_types::Duration, String> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    let duration = match seconds.or_else(|| decimal(text)) {
        Some(duration) => duration,
        None => humantime::parse_duration(text)
            .map_err(|error| format!("{error}; `5s`, `0.5s`, `100ms` or `1h 30m` is expected"))?,
    };
    duration
        .try_into()
        .map_err(|_| "the duration is too long".to_owned())
}

/// Reads one number, with or without a fraction, and one unit of humantime or none, which is seconds.
fn decimal(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| c != '.' && !c.is_ascii_digit());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let unit = if unit.is_empty() { "s" } else { unit };
    let unit = humantime::parse_duration(&format!("1{unit}")).ok()?;
    let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let whole: u32 = whole.parse().ok()?;
    let part = unit.as_nanos() * u128::from(fraction.parse::<u64>().ok()?) / u128::from(scale);
    let part = Duration::from_nanos(u64::try_from(part).ok()?);
    unit.checked_mul(whole)?.checked_add(part)
}

/// The largest number of digits of seconds ago: 115 days. A longer number is probably meant as a date, or as seconds since
/// 1970, and is refused.
const SECONDS_AGO_DIGITS: usize = 7;

/// Reads a point in time: so long ago (`10m`; a number alone is seconds), a time of today (`12:00`, `12:00:00`), a date and
/// time in the local zone, or RFC 3339.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    moment_at(text, &ZonedDateTime::now())
}

/// Returns a time as events have it, in ns since 1970; 0 for one before that.
pub(super) fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}

fn moment_at(text: &str, now: &ZonedDateTime) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let number = text.bytes().all(|byte| byte.is_ascii_digit());
    if number && text.len() > SECONDS_AGO_DIGITS {
        return Err(format!(
            "`{text}` has too many digits for seconds ago; {MOMENTS}"
        ));
    }
    if let Some(ago) = decimal(text).or_else(|| humantime::parse_duration(text).ok()) {
        let time = now.timestamp().checked_sub(ago);
        return time.map_err(|_| "the time is too long ago".to_owned());
    }
    let local = text.parse::<DateTime>().ok().or_else(|| {
        let time: Time = text.parse().ok()?;
        Some(now.date().to_datetime(time))
    });
    let zoned = local.and_then(|local| local.to_zoned_datetime(now.time_zone().clone()).ok());
    let time = zoned.map(|zoned| zoned.timestamp());
    time.ok_or_else(|| MOMENTS.to_owned())
}

/// The allowed forms of a point in time, for error messages.
const MOMENTS: &str = "`10m` or `600` (seconds) ago, `12:00:00`, `2030-01-31 12:00:00` or `2030-01-31T12:00:00Z` is expected";

/// Reads a signal, and returns it as the daemon takes it: `TERM`, `sigterm` and `SIGTERM` are the same.
pub(super) fn signal(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let number = !upper.is_empty() && upper.bytes().all(|c| c.is_ascii_digit());
    let name = match upper.starts_with("SIG") || number {
        true => upper,
        false => format!("SIG{upper}"),
    };
    let known = match name.parse() {
        // Signal 0 checks whether the process runs, see kill(2).
        Ok(number) => number == 0 || signal_name(number).is_some(),
        Err(_) => signal_number(&name).is_some(),
    };
    if !known {
        return Err(
            "a signal's name as in signal(7), SIGRTMIN+N, or its number is expected".into(),
        );
    }
    Ok(name)
}

/// An address to connect to, or to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Tcp {
        host: String,
        port: u16,
    },
    Unix(proto::unix_address::Name),
    /// The number of a file descriptor that evloopctl has inherited.
    Fd(i32),
}

/// Reads an address: `HOST:PORT`, `[IPv6]:PORT`, `unix:PATH`, `unix:@NAME` (abstract) or `fd:N` (inherited).
pub(super) fn address(text: &str) -> Result<Address, String> {
    if let Some(fd) = text.strip_prefix("fd:") {
        return Ok(Address::Fd(fd_number(fd)?));
    }
    of_socket(text, "HOST:PORT, unix:PATH, unix:@NAME or fd:N is expected")
}

/// Reads the address of a socket to send to: as [`address`], but no descriptor.
pub(super) fn peer(text: &str) -> Result<SocketAddress, String> {
    if text.starts_with("fd:") {
        return Err("a descriptor is no address to send to".to_owned());
    }
    endpoint(of_socket(
        text,
        "HOST:PORT, unix:PATH or unix:@NAME is expected",
    )?)
}

fn of_socket(text: &str, expected: &str) -> Result<Address, String> {
    if let Some(name) = text.strip_prefix("unix:@") {
        let name = bytes::Bytes::copy_from_slice(name.as_bytes());
        return Ok(Address::Unix(proto::unix_address::Name::AbstractName(name)));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(Address::Unix(proto::unix_address::Name::Path(absolute(
            path,
        )?)));
    }
    let expected = || expected.to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return Err("an IPv6 address is written in brackets: [::1]:80".to_owned());
    }
    Ok(Address::Tcp {
        host: bare.unwrap_or(host).to_owned(),
        port: port.parse().map_err(|_| expected())?,
    })
}

/// Reads the name of a host.
pub(super) fn host(text: &str) -> Result<String, String> {
    match text {
        "" => Err("the name or the IP address of a host is expected".to_owned()),
        host => Ok(host.to_owned()),
    }
}

/// Reads a size: a number of bytes, or a number with a unit, such as `64KiB`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let size = text.parse::<bytesize::ByteSize>();
    size.map(|size| size.as_u64())
        .map_err(|_| "a size is expected, such as 64KiB".to_owned())
}

/// Reads the number of a file descriptor.
pub(super) fn fd_number(text: &str) -> Result<i32, String> {
    let fd = text.parse().ok().filter(|fd| *fd >= 0);
    fd.ok_or_else(|| "the number of a file descriptor is expected".to_owned())
}

/// Returns an absolute path, because the daemon has another working directory.
pub(super) fn absolute(path: &str) -> Result<String, String> {
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    let utf8 = path.into_os_string().into_string();
    utf8.map_err(|path| format!("the path {} is not UTF-8", path.display()))
}

/// Returns the address of a datagram socket, which is not an inherited descriptor.
pub(super) fn endpoint(address: Address) -> Result<SocketAddress, String> {
    let address = match address {
        Address::Tcp { host, port } => socket_address::Address::Inet(InetAddress {
            ip: host,
            port: port.into(),
        }),
        Address::Unix(name) => socket_address::Address::Unix(UnixAddress { name: Some(name) }),
        Address::Fd(_) => return Err("a descriptor has no address".to_owned()),
    };
    Ok(SocketAddress {
        address: Some(address),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_epoch_and_seq_or_seq_alone() {
        let epoch = "0123456789abcdef0123456789abcdef";
        let whole = cursor(&format!("{epoch}:7")).unwrap();
        assert_eq!((whole.epoch.as_str(), whole.seq), (epoch, 7));
        assert_eq!(cursor_text(&whole), format!("{epoch}:7"));
        assert_eq!(
            cursor("7").unwrap(),
            Cursor {
                epoch: String::new(),
                seq: 7
            }
        );
        for bad in [
            "",
            "x",
            ":7",
            "abc:7",
            &format!("{epoch}:"),
            &format!("{epoch}:-1"),
        ] {
            assert!(cursor(bad).is_err(), "{bad}");
        }
        assert!(cursor(&format!("{}:7", epoch.to_uppercase())).is_err());
    }

    #[test]
    fn key_value_splits_at_the_first_equals_sign() {
        assert_eq!(key_value("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(key_value("A="), Ok(("A".to_owned(), String::new())));
        assert!(key_value("=b").is_err());
        assert!(key_value("A").is_err());
    }

    #[test]
    fn a_variable_need_not_be_text() {
        let os = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        assert_eq!(
            variable(&os(b"A\xff=\xfe=")),
            Ok((os(b"A\xff"), os(b"\xfe=")))
        );
        assert!(variable(&os(b"=b")).is_err());
        assert!(variable(&os(b"A")).is_err());
    }

    #[test]
    fn umask_and_limits_are_as_the_shell_writes_them() {
        assert_eq!(umask("022"), Ok(0o22));
        for bad in ["", "8", "1000", "u=rwx"] {
            assert!(umask(bad).is_err(), "{bad}");
        }
        let limit =
            |text| limit(text).map(|(resource, limit)| (resource.name(), limit.to_string()));
        assert_eq!(limit("core=0"), Ok(("core", "0:0".to_owned())));
        assert_eq!(
            limit("nofile=1:unlimited"),
            Ok(("nofile", "1:unlimited".to_owned()))
        );
        for bad in ["nofile", "nofile=", "nofil=1", "nofile=2:1"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_carry_units_or_are_seconds() {
        let parsed = duration("1m 500ms").unwrap();
        assert_eq!((parsed.seconds, parsed.nanos), (60, 500_000_000));
        assert_eq!(duration("5").unwrap().seconds, 5);
        for (text, seconds, nanos) in [
            ("0.5", 0, 500_000_000),
            ("1.5s", 1, 500_000_000),
            ("1.25 h", 4500, 0),
            ("0.000000001", 0, 1),
            ("2.5ms", 0, 2_500_000),
        ] {
            let parsed = duration(text).unwrap();
            assert_eq!((parsed.seconds, parsed.nanos), (seconds, nanos), "{text}");
        }
        let wrong = [
            "",
            ".",
            "1.",
            ".5",
            "1.2.3",
            "1.5s 2",
            "-5",
            "-5s",
            "5 parsecs",
        ];
        for bad in wrong {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_moment_is_so_long_ago_or_a_time_here_or_anywhere() {
        let now: ZonedDateTime = "2030-01-31T12:00:00+01:00[Europe/Berlin]".parse().unwrap();
        for (text, time) in [
            ("10m", "2030-01-31T10:50:00Z"),
            ("1h 30m", "2030-01-31T09:30:00Z"),
            ("10", "2030-01-31T10:59:50Z"),
            ("1.5h", "2030-01-31T09:30:00Z"),
            ("11:59", "2030-01-31T10:59:00Z"),
            ("00:00:01", "2030-01-30T23:00:01Z"),
            ("2029-07-01 12:00:00", "2029-07-01T10:00:00Z"),
            ("2029-07-01", "2029-06-30T22:00:00Z"),
            ("2030-01-31T12:00:00Z", "2030-01-31T12:00:00Z"),
            ("2030-01-31T12:00:00+05:00", "2030-01-31T07:00:00Z"),
        ] {
            let moment = moment_at(text, &now).unwrap();
            assert_eq!(moment.to_string(), time, "{text}");
        }
        for bad in ["", "soon", "25:00", "2030-13-01", "20300131", "-5m"] {
            let error = moment_at(bad, &now).unwrap_err();
            assert!(error.contains("12:00:00"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_number_is_a_name_and_an_id_has_its_sign() {
        for name in ["7", "7x", "x@7"] {
            let named = watch_ref(name).unwrap();
            assert_eq!(named.r#ref, Some(watch_ref::Ref::Name(name.to_owned())));
            assert_eq!(watch_name(&named), name);
            let named = loop_ref(name).unwrap().r#ref;
            assert_eq!(named, Some(loop_ref::Ref::Name(name.to_owned())));
        }
        assert_eq!(watch_ref("@7"), Ok(by_id(7)));
        assert_eq!(watch_id("7"), Ok(by_id(7)));
        assert_eq!(watch_id("@7"), Ok(by_id(7)));
        assert!(watch_id("@@7").is_err() && watch_ref("@@7").is_err());
        assert_eq!(watch_name(&by_id(7)), "@7");
        let numbered = loop_ref("@7").unwrap().r#ref;
        assert_eq!(numbered, Some(loop_ref::Ref::LoopId(7)));
        for bad in ["", "@", "@x", "@-1", "@+1", "@18446744073709551616"] {
            assert!(watch_ref(bad).is_err() && loop_ref(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn signals_have_one_spelling() {
        for text in ["TERM", "term", "SIGTERM", "sigterm"] {
            assert_eq!(signal(text).unwrap(), "SIGTERM");
        }
        assert_eq!(signal("9").unwrap(), "9");
        assert_eq!(signal("rtmin+1").unwrap(), "SIGRTMIN+1");
        for bad in ["", "FOO", "SIG", "SIGFOO", "99", "-1", "SIGRTMIN+99"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_tcp_unix_or_inherited() {
        let tcp = |host: &str, port| Address::Tcp {
            host: host.to_owned(),
            port,
        };
        assert_eq!(address("localhost:80"), Ok(tcp("localhost", 80)));
        assert_eq!(address("[::1]:80"), Ok(tcp("::1", 80)));
        assert_eq!(address(":0"), Ok(tcp("", 0)));
        assert_eq!(address("fd:3"), Ok(Address::Fd(3)));
        let path = proto::unix_address::Name::Path("/a".to_owned());
        assert_eq!(address("unix:/a"), Ok(Address::Unix(path)));
        for bad in ["::1:80", "host", "host:x", "host:70000", "fd:x", "fd:-1"] {
            assert!(address(bad).is_err(), "{bad}");
            let told = peer(bad).unwrap_err();
            assert!(!told.contains("fd:"), "{told}");
        }
    }
}
