//! Tests of the syntax of calendar events.

use super::*;

fn parsed(text: &str) -> OnCalendar {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refused(text: &str) -> String {
    text.parse::<OnCalendar>().unwrap_err().to_string()
}

/// The examples of systemd.time(7), with their normalized forms.
#[test]
fn the_examples_of_the_manual_mean_what_it_says() {
    for (text, normal) in [
        (
            "Sat,Thu,Mon..Wed,Sat..Sun",
            "Mon..Thu,Sat,Sun *-*-* 00:00:00",
        ),
        ("Mon,Sun 12-*-* 2,1:23", "Mon,Sun 2012-*-* 01,02:23:00"),
        ("Wed *-1", "Wed *-*-01 00:00:00"),
        ("Wed..Wed,Wed *-1", "Wed *-*-01 00:00:00"),
        ("Wed, 17:48", "Wed *-*-* 17:48:00"),
        (
            "Wed..Sat,Tue 12-10-15 1:2:3",
            "Tue..Sat 2012-10-15 01:02:03",
        ),
        ("*-*-7 0:0:0", "*-*-07 00:00:00"),
        ("10-15", "*-10-15 00:00:00"),
        ("monday *-12-* 17:00", "Mon *-12-* 17:00:00"),
        ("Mon,Fri *-*-3,1,2 *:30:45", "Mon,Fri *-*-01,02,03 *:30:45"),
        ("12,14,13,12:20,10,30", "*-*-* 12,13,14:10,20,30:00"),
        ("12..14:10,20,30", "*-*-* 12..14:10,20,30:00"),
        ("mon,fri *-1/2-1,3 *:30:45", "Mon,Fri *-01/2-01,03 *:30:45"),
        ("03-05 08:05:40", "*-03-05 08:05:40"),
        ("08:05:40", "*-*-* 08:05:40"),
        ("05:40", "*-*-* 05:40:00"),
        ("Sat,Sun 12-05 08:05:40", "Sat,Sun *-12-05 08:05:40"),
        ("Sat,Sun 08:05:40", "Sat,Sun *-*-* 08:05:40"),
        ("2003-03-05 05:40", "2003-03-05 05:40:00"),
        (
            "05:40:23.4200004/3.1700005",
            "*-*-* 05:40:23.420000/3.170001",
        ),
        ("2003-02..04-05", "2003-02..04-05 00:00:00"),
        ("2003-03-05 05:40 UTC", "2003-03-05 05:40:00 UTC"),
        ("2003-03-05", "2003-03-05 00:00:00"),
        ("03-05", "*-03-05 00:00:00"),
        ("hourly", "*-*-* *:00:00"),
        ("daily", "*-*-* 00:00:00"),
        ("daily UTC", "*-*-* 00:00:00 UTC"),
        ("monthly", "*-*-01 00:00:00"),
        ("weekly", "Mon *-*-* 00:00:00"),
        (
            "weekly Pacific/Auckland",
            "Mon *-*-* 00:00:00 Pacific/Auckland",
        ),
        ("yearly", "*-01-01 00:00:00"),
        ("annually", "*-01-01 00:00:00"),
        ("*:2/3", "*-*-* *:02/3:00"),
        ("minutely", "*-*-* *:*:00"),
        ("quarterly", "*-01,04,07,10-01 00:00:00"),
        ("semiannually", "*-01,07-01 00:00:00"),
        ("biannually", "*-01,07-01 00:00:00"),
        ("DAILY", "*-*-* 00:00:00"),
        ("Mon-Fri", "Mon..Fri *-*-* 00:00:00"),
        ("*-*~*", "*-*-* 00:00:00"),
        ("*-*~01..07/4", "*-*~05,01 00:00:00"),
        ("Mon *-05~07/1", "Mon *-05~01..07 00:00:00"),
        ("*~7/3", "*-*~7,4,1 00:00:00"),
        ("*~8/3", "*-*~8,5,2 00:00:00"),
        ("*-*-* 6..6:00", "*-*-* 06:00:00"),
        ("*-*-* 02..05/9:00", "*-*-* 02:00:00"),
        ("00:00:0.0000004", "00:00:00"),
        ("99-1-1", "1999-01-01"),
        ("@1767225600", "2026-01-01 00:00:00 UTC"),
        ("@1767225599", "2025-12-31 23:59:59 UTC"),
        ("@1767225599 utc", "2025-12-31 23:59:59 UTC"),
    ] {
        // Some of them never come.
        assert_eq!(read(text).unwrap(), read(normal).unwrap(), "{text}");
    }
    let event = parsed(" daily  Europe/Berlin ");
    assert_eq!(
        (event.text(), event.zone()),
        ("daily  Europe/Berlin", Some("Europe/Berlin"))
    );
}

#[test]
fn a_second_that_rounds_up_is_read_as_the_manual_says() {
    let Seconds::Parts(parts) = parsed("05:40:23.4200004/3.1700005").pattern.times.seconds else {
        panic!("whole seconds");
    };
    let [Part { first, last, step }] = parts[..] else {
        panic!("{parts:?}");
    };
    assert_eq!((first, last, step), (23_420_000, 59_999_999, 3_170_001));
}

#[test]
fn an_error_names_the_field_the_text_and_what_is_allowed() {
    for (text, begins, contains) in [
        ("24:00", "hour: `24` is refused: ", "0 to 23"),
        ("00:60", "minute: `60` is refused: ", "0 to 59"),
        ("00:00:60", "second: `60` is refused: ", "less than 60"),
        (
            "0:0:59.9999999",
            "second: `59.9999999` is refused: ",
            "less than 60",
        ),
        (
            "00:00:00:00",
            "time: `00:00:00:00` is refused: ",
            "HOUR:MINUTE:SECOND",
        ),
        ("12", "date: `12` is refused: ", "a time has a colon"),
        ("*-*-* 12", "time: `12` is refused: ", "HOUR:MINUTE"),
        ("13-01", "month: `13` is refused: ", "1 to 12"),
        ("*-00", "day of month: `00` is refused: ", "1 to 31"),
        ("*-*-32", "day of month: `32` is refused: ", "1 to 31"),
        ("*-*~31", "day of month: `31` is refused: ", "to 28"),
        ("*-*~03/3", "day of month: `03/3` is refused: ", "too long"),
        ("2200-01-01", "year: `2200` is refused: ", "1970 to 2199"),
        ("1969-01-01", "year: `1969` is refused: ", "1970 to 2199"),
        ("1-2-3-4", "date: `1-2-3-4` is refused: ", "YEAR-MONTH-DAY"),
        (
            "2026~01-01",
            "date: `2026~01-01` is refused: ",
            "YEAR-MONTH-DAY",
        ),
        ("*:*/5", "minute: `*/5` is refused: ", "0/15"),
        ("*:0/60", "minute: `0/60` is refused: ", "fits"),
        (
            "*-1..31/31",
            "day of month: `1..31/31` is refused: ",
            "fits",
        ),
        ("*:0/0", "minute: `0/0` is refused: ", "from 1"),
        ("*:50/10", "minute: `50/10` is refused: ", "too long"),
        ("22..2:00", "hour: `22..2` is refused: ", "two ranges"),
        ("1.5:00", "hour: `1.5` is refused: ", "0 to 23"),
        ("0:0:0/0.0001", "second: `0/0.0001` is refused: ", "0.001"),
        ("Fri..Mon", "day of week: `Fri..Mon` is refused: ", "Sunday"),
        (
            "Mon,Foo 10:00",
            "day of week: `Foo` is refused: ",
            "Mon to Sun",
        ),
        ("Mon.Fri", "day of week: `Mon.Fri` is refused: ", "Mon..Fri"),
        ("Mon,, 10:00", "day of week: `` is refused: ", "Mon..Fri"),
        (
            "fortnightly",
            "the expression `fortnightly` is not known",
            "quarterly",
        ),
        ("10:00 11:00", "time: `11:00` is refused: ", "zone"),
        ("", "the expression is empty", "02:30"),
        ("@", "time: `` is refused: ", "seconds"),
        ("@x", "time: `x` is refused: ", "seconds"),
        ("@1 Nowhere", "time: `Nowhere` is refused: ", "UTC"),
        ("@7258118400", "time: `7258118400` is refused: ", "2199"),
        (
            "@9223372036854775807",
            "time: `9223372036854775807` is refused: ",
            "2199",
        ),
    ] {
        let said = refused(text);
        assert!(
            said.starts_with(begins) && said.contains(contains),
            "{text}: {said}"
        );
    }
    let list = vec!["1"; 241].join(",");
    assert!(refused(&format!("*:{list}")).contains("at most 240"));
}

#[test]
fn a_date_that_never_comes_is_refused_at_once() {
    for text in ["*-02-30", "2026-02-29", "Mon 2026-01-01", "*-04,06-31"] {
        let said = refused(text);
        assert!(said.contains("never comes"), "{text}: {said}");
    }
    assert!(parsed("*-02-29").zone().is_none());
    assert!(parsed("2199-12-31").zone().is_none());
}
