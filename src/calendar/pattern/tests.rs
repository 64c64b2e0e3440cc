//! Tests of sets of dates and times against the sets that they stand for.

use super::*;
use crate::calendar::tests::Random;

fn days_of(dates: &Dates, year: i32, month: u32) -> Vec<u32> {
    let mut from = 1;
    let mut days = Vec::new();
    while let Some(day) = dates.next_in_month(year, month, from) {
        days.push(day);
        from = day + 1;
    }
    days
}

#[test]
fn days_of_each_month_are_what_day_and_weekday_say() {
    let mut random = Random::new(6);
    for _ in 0..3_000 {
        let from_end = random.one_in(2);
        let either = random.one_in(2);
        let days = u32::try_from(random.next() >> 32).unwrap() & DAYS;
        let weekdays = u8::try_from(random.within(0, 127)).unwrap();
        let dates = Dates {
            days,
            weekdays,
            from_end,
            combined: if either {
                Combined::Either
            } else {
                Combined::Both
            },
            ..Dates::ALL
        };
        let year = i32::try_from(random.within(1970, 2199)).unwrap();
        let month = u32::try_from(random.within(1, 12)).unwrap();
        let length = month_length(year, month);
        let expected = (1..=length).filter(|day| {
            let counted = if from_end { length + 1 - day } else { *day };
            let by_day = days & (1 << counted) != 0;
            let of_week = weekday(days_to(Date {
                year,
                month,
                day: *day,
            }));
            let by_week = weekdays & (1 << of_week) != 0;
            if either {
                by_day || by_week
            } else {
                by_day && by_week
            }
        });
        let expected: Vec<_> = expected.collect();
        assert_eq!(
            days_of(&dates, year, month),
            expected,
            "{dates:?} {year}-{month}"
        );
    }
}

#[test]
fn years_are_those_that_were_put_in() {
    let mut years = Years::NONE;
    for year in [1970, 2033, 2034, 2199, 1969, 2200] {
        years.insert(year);
    }
    let all: Vec<_> = (1900..2300).filter(|year| years.contains(*year)).collect();
    assert_eq!(all, [1970, 2033, 2034, 2199]);
}

#[test]
fn the_next_time_of_day_is_the_least_that_is_not_before() {
    let mut random = Random::new(7);
    for _ in 0..300 {
        let hours = (random.next() & random.next() & 0xff_ffff) | 1 << 5;
        let minutes = (random.next() & random.next() & ((1 << 60) - 1)) | 1 << 7;
        let seconds = if random.one_in(2) {
            Seconds::Whole((random.next() & random.next() & ((1 << 60) - 1)) | 1 << 9)
        } else {
            Seconds::Parts(vec![
                Part {
                    first: 1_500_000,
                    last: 59_999_999,
                    step: 7_250_000,
                },
                Part {
                    first: 20_000_001,
                    last: 20_000_001,
                    step: 1,
                },
            ])
        };
        let within: Vec<i64> = match &seconds {
            Seconds::Whole(bits) => (0..60)
                .filter(|at| bits & (1 << at) != 0)
                .map(|at| at * SECOND)
                .collect(),
            Seconds::Parts(_) => {
                let mut all: Vec<_> = (0..9).map(|at| 1_500_000 + at * 7_250_000).collect();
                all.retain(|at| *at < MINUTE);
                all.push(20_000_001);
                all.sort_unstable();
                all
            }
        };
        let times = Times {
            hours: u32::try_from(hours).unwrap(),
            minutes,
            seconds,
        };
        let mut all = Vec::new();
        for hour in (0..24).filter(|at| hours & (1 << at) != 0) {
            for minute in (0..60).filter(|at| minutes & (1 << at) != 0) {
                all.extend(
                    within
                        .iter()
                        .map(|rest| hour * HOUR + minute * MINUTE + rest),
                );
            }
        }
        for _ in 0..30 {
            let from = match random.within(0, 2) {
                0 => all[random.within(0, all.len() - 1)],
                1 => all[random.within(0, all.len() - 1)] + 1,
                _ => i64::try_from(random.within(0, 86_399_999_999)).unwrap(),
            };
            let expected = all.iter().find(|at| **at >= from).copied();
            assert_eq!(times.next(from), expected, "{times:?} {from}");
        }
    }
}
