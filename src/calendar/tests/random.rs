//! Random expressions, each with what it means, told by its construction and not by the parser.

use jiff::civil::DateTime;

/// A generator of numbers: xorshift64.
#[derive(Debug, Clone)]
pub(in crate::calendar) struct Random(u64);

impl Random {
    pub(in crate::calendar) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(in crate::calendar) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number from `low` to `high` inclusive.
    pub(in crate::calendar) fn within(&mut self, low: usize, high: usize) -> usize {
        low + usize::try_from(self.next() >> 16).unwrap() % (high - low + 1)
    }

    pub(in crate::calendar) fn one_in(&mut self, count: usize) -> bool {
        self.within(1, count) == 1
    }
}

/// What an expression means.
#[derive(Debug, Clone)]
pub(super) struct Meaning {
    pub(super) text: String,
    seconds: Vec<bool>,
    minutes: Vec<bool>,
    hours: Vec<bool>,
    days: Vec<bool>,
    from_end: bool,
    months: Vec<bool>,
    /// From Sunday.
    week: Vec<bool>,
    either: bool,
    /// The remainder of the years by three.
    years: Option<i16>,
    pub(super) fixed: bool,
}

impl Meaning {
    pub(super) fn matches(&self, time: DateTime) -> bool {
        let place = |number: i8| usize::try_from(number).unwrap();
        self.years.is_none_or(|years| time.year() % 3 == years)
            && self.minutes[place(time.minute())]
            && self.hours[place(time.hour())]
            && self.seconds[place(time.second())]
            && self.months[place(time.month())]
            && {
                let day = if self.from_end {
                    time.date().days_in_month() - time.day() + 1
                } else {
                    time.day()
                };
                let day = self.days[place(day)];
                let week = self.week[place(time.weekday().to_sunday_zero_offset())];
                if self.either {
                    day || week
                } else {
                    day && week
                }
            }
    }
}

struct Syntax {
    range: &'static str,
    /// Whether a step may follow `*`, else it may follow a number.
    star_step: bool,
}

const CRON: Syntax = Syntax {
    range: "-",
    star_step: true,
};
const EVENT: Syntax = Syntax {
    range: "..",
    star_step: false,
};

/// A field: its text, and the set of its numbers. It is `*` in `stars` of 100.
fn field(
    random: &mut Random,
    syntax: &Syntax,
    (low, high): (usize, usize),
    stars: usize,
) -> (String, Vec<bool>) {
    let mut set = vec![false; high + 1];
    if random.within(0, 99) < stars {
        set[low..].fill(true);
        return ("*".to_owned(), set);
    }
    let mut items = Vec::new();
    for _ in 0..random.within(1, 3) {
        let first = random.within(low, high);
        let last = random.within(first, high);
        let step = random.within(1, (high - low).min(20));
        let range = format!("{first}{}{last}", syntax.range);
        let (text, first, last, step) = match random.within(0, 4) {
            0 if last > first => (range, first, last, 1),
            1 if syntax.star_step => (format!("*/{step}"), low, high, step),
            1 if first + step <= high => (format!("{first}/{step}"), first, high, step),
            2 if last > first => (format!("{range}/{step}"), first, last, step),
            _ => (first.to_string(), first, first, 1),
        };
        let mut number = first;
        while number <= last {
            set[number] = true;
            number += step;
        }
        items.push(text);
    }
    (items.join(","), set)
}

fn only_zero() -> Vec<bool> {
    (0..60).map(|second| second == 0).collect()
}

/// Returns an expression of cron; with seconds, if `seconds`.
pub(super) fn cron(random: &mut Random, seconds: bool) -> Meaning {
    let (second, seconds_set) = field(random, &CRON, (0, 59), 20);
    let (minute, minutes) = field(random, &CRON, (0, 59), 25);
    let (hour, hours) = field(random, &CRON, (0, 23), 30);
    let (day, days) = field(random, &CRON, (1, 31), 70);
    let (month, months) = field(random, &CRON, (1, 12), 85);
    let (week, mut week_set) = field(random, &CRON, (0, 7), 70);
    week_set[0] |= week_set[7];
    let rest = format!("{minute} {hour} {day} {month} {week}");
    Meaning {
        text: if seconds {
            format!("{second} {rest}")
        } else {
            rest
        },
        seconds: if seconds { seconds_set } else { only_zero() },
        fixed: !(minute.starts_with('*') || hour.starts_with('*')),
        minutes,
        hours,
        days,
        from_end: false,
        months,
        either: !(day.starts_with('*') || week.starts_with('*')),
        years: None,
        week: week_set,
    }
}

/// Returns a calendar event; with seconds other than 0, if `seconds`.
pub(super) fn event(random: &mut Random, seconds: bool) -> Meaning {
    const NAMES: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    let (second, seconds_set) = field(random, &EVENT, (0, 59), 20);
    let (minute, minutes) = field(random, &EVENT, (0, 59), 25);
    let (hour, hours) = field(random, &EVENT, (0, 23), 30);
    let from_end = random.one_in(4);
    let high = if from_end { 28 } else { 31 };
    let (mut day, mut days) = field(random, &EVENT, (1, high), 70);
    if from_end && day.contains('/') {
        // A repetition from the end goes towards the end, so that its set is another.
        let set = (0..29).map(|day| [2, 6, 10].contains(&day)).collect();
        (day, days) = ("10/4".to_owned(), set);
    }
    days.resize(32, day == "*");
    let (month, months) = field(random, &EVENT, (1, 12), 85);
    let mut week = vec![true; 7];
    let mut names = String::new();
    if random.one_in(3) {
        let first = random.within(1, 6);
        let last = random.within(first, 6);
        week = (0..7)
            .map(|day| day == 0 || (first..=last).contains(&day))
            .collect();
        names = format!("{}..{},{} ", NAMES[first], NAMES[last], NAMES[0]);
    }
    let (year, years) = match random.within(0, 5) {
        // 1970 is 2 more than a multiple of three.
        0 => ("1970/3-", Some(2)),
        1 => ("1971..2199/3-", Some(0)),
        2 => ("", None),
        _ => ("*-", None),
    };
    let mark = if from_end { '~' } else { '-' };
    let tail = if seconds {
        format!(":{second}")
    } else {
        String::new()
    };
    Meaning {
        text: format!("{names}{year}{month}{mark}{day} {hour}:{minute}{tail}"),
        seconds: if seconds { seconds_set } else { only_zero() },
        fixed: !(minute.starts_with('*') || hour.starts_with('*')),
        minutes,
        hours,
        days,
        from_end,
        months,
        week,
        either: false,
        years,
    }
}
