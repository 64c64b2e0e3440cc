//! Days and dates of the proleptic Gregorian calendar, as plain numbers.
//!
//! A civil time is a number of microseconds since 1970-01-01 00:00:00 on the clock on the wall,
//! whatever the zone. A search over civil times therefore is arithmetic that cannot fail.

/// Microseconds in a second.
pub(super) const SECOND: i64 = 1_000_000;
/// Microseconds in a minute.
pub(super) const MINUTE: i64 = 60 * SECOND;
/// Microseconds in an hour.
pub(super) const HOUR: i64 = 60 * MINUTE;
/// Microseconds in a day.
pub(super) const DAY: i64 = 24 * HOUR;

/// The first year of the calendar, as in systemd.
pub const YEAR_MIN: i32 = 1970;
/// The last year of the calendar, as in systemd. Nothing is due after it.
pub const YEAR_MAX: i32 = 2199;

/// A date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i32,
    /// 1 to 12.
    pub(super) month: u32,
    /// 1 to 31.
    pub(super) day: u32,
}

/// Returns the number of days from 1970-01-01 to a date. Months and days count from 1.
pub(super) fn days_to(date: Date) -> i64 {
    // Years are counted from March, so that the leap day is the last of its year.
    let month = i64::from(date.month);
    let year = i64::from(date.year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(date.day) - 1;
    let days = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    era * 146_097 + days - 719_468
}

/// Returns the date that is so many days after 1970-01-01.
pub(super) fn date_of(days: i64) -> Date {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    Date {
        year: narrow(era * 400 + year + i64::from(month <= 2)),
        month: narrow(month).unsigned_abs(),
        day: narrow(day).unsigned_abs(),
    }
}

fn narrow(number: i64) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Returns the weekday of a day: 0 is Monday, 6 is Sunday.
pub(super) fn weekday(days: i64) -> u32 {
    // 1970-01-01 was a Thursday.
    narrow((days + 3).rem_euclid(7)).unsigned_abs()
}

/// Returns the number of days of a month.
pub(super) const fn month_length(year: i32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_days_agree_with_jiff_over_all_years() {
        let mut date = jiff::civil::date(1899, 12, 31);
        let first = date.since((jiff::Unit::Day, jiff::civil::date(1970, 1, 1)));
        let mut days = i64::from(first.unwrap().get_days());
        while date.year() < 2201 {
            let ours = date_of(days);
            let theirs = (
                i32::from(date.year()),
                date.month().unsigned_abs().into(),
                date.day().unsigned_abs().into(),
            );
            assert_eq!((ours.year, ours.month, ours.day), theirs);
            assert_eq!(days_to(ours), days);
            let monday = date.weekday().to_monday_zero_offset();
            assert_eq!(weekday(days), u32::from(monday.unsigned_abs()), "{date}");
            let length = u32::from(date.days_in_month().unsigned_abs());
            assert_eq!(month_length(ours.year, ours.month), length, "{date}");
            date = date.tomorrow().unwrap();
            days += 1;
        }
    }
}
