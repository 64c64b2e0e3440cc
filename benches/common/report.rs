//! Rounds, medians, and the printed report.

use std::time::Duration;

use super::Outcome;

/// The number of rounds of each case. It is odd, so that the median is a measured value.
const ROUNDS: usize = 15;

/// The values of a result that are good.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// The measurements of both sides, by round.
struct Ratio {
    name: &'static str,
    /// The backend of the daemon; empty if the result does not depend on it.
    backend: &'static str,
    unit: &'static str,
    ours: Vec<f64>,
    theirs: Vec<f64>,
    target: Option<Target>,
}

/// Measurements without a comparison.
struct Figure {
    name: &'static str,
    backend: &'static str,
    target: Option<Target>,
    measured: Vec<f64>,
}

/// All results of a run.
#[derive(Default)]
pub(crate) struct Report {
    ratios: Vec<Ratio>,
    figures: Vec<Figure>,
}

/// One side of a comparison: each call runs one round.
pub(crate) type Side<'a, T> = Box<dyn FnMut() -> Outcome<T> + 'a>;

/// Runs both sides alternately, after one round of each that is not counted.
pub(crate) fn alternate<'a, T>(
    ours: impl FnMut() -> Outcome<T> + 'a,
    theirs: impl FnMut() -> Outcome<T> + 'a,
) -> Outcome<(Vec<T>, Vec<T>)> {
    let sides: [Side<'a, T>; 2] = [Box::new(ours), Box::new(theirs)];
    let mut taken = in_turns(sides.into())?.into_iter();
    Ok((
        taken.next().unwrap_or_default(),
        taken.next().unwrap_or_default(),
    ))
}

/// Runs all sides in turn, after one round of each that is not counted.
pub(crate) fn in_turns<T>(mut sides: Vec<Side<'_, T>>) -> Outcome<Vec<Vec<T>>> {
    for side in &mut sides {
        side()?;
    }
    let mut taken: Vec<Vec<T>> = sides.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (side, taken) in sides.iter_mut().zip(&mut taken) {
            taken.push(side()?);
        }
    }
    Ok(taken)
}

impl Report {
    /// Adds a result of two sides, with one number for each round and side.
    pub(crate) fn ratio(
        &mut self,
        (name, backend): (&'static str, &'static str),
        unit: &'static str,
        target: Option<Target>,
        (ours, theirs): (Vec<f64>, Vec<f64>),
    ) {
        self.ratios.push(Ratio {
            name,
            backend,
            unit,
            ours,
            theirs,
            target,
        });
    }

    /// Adds a result without a comparison, measured once or more often.
    pub(crate) fn figure(
        &mut self,
        (name, backend): (&'static str, &'static str),
        target: Option<Target>,
        measured: Vec<f64>,
    ) {
        self.figures.push(Figure {
            name,
            backend,
            target,
            measured,
        });
    }

    pub(crate) fn print(&self) {
        let header = ["", "on", "unit", "evloopd", "yardstick", "ratio", "target"];
        let mut rows = vec![header.map(String::from)];
        rows.extend(self.ratios.iter().map(Ratio::row));
        rows.extend(self.figures.iter().map(|figure| {
            let mut row = [const { String::new() }; 7];
            row[0] = figure.name.into();
            row[1] = figure.backend.into();
            row[3] = spread(&figure.measured, 1);
            row[6] = verdict(figure.target, &figure.measured);
            row
        }));
        print_table(&rows);
        println!();
        let full = |name: &str, backend: &str| match backend {
            "" => name.to_owned(),
            backend => format!("{name}/{backend}"),
        };
        for ratio in &self.ratios {
            let name = full(ratio.name, ratio.backend);
            println!("ratio {name} {:.3}", median(&ratio.rounds()));
        }
        for figure in &self.figures {
            let name = full(figure.name, figure.backend);
            println!("figure {name} {:.1}", median(&figure.measured));
        }
    }
}

impl Ratio {
    fn rounds(&self) -> Vec<f64> {
        let pairs = self.ours.iter().zip(&self.theirs);
        pairs.map(|(ours, theirs)| ours / theirs).collect()
    }

    fn row(&self) -> [String; 7] {
        let rounds = self.rounds();
        [
            self.name.into(),
            self.backend.into(),
            self.unit.into(),
            spread(&self.ours, 1),
            spread(&self.theirs, 1),
            spread(&rounds, 3),
            verdict(self.target, &rounds),
        ]
    }
}

fn verdict(target: Option<Target>, measured: &[f64]) -> String {
    let (text, met) = match target {
        None => return String::new(),
        Some(Target::AtLeast(bound)) => (format!("≥ {bound}"), median(measured) >= bound),
        Some(Target::AtMost(bound)) => (format!("≤ {bound}"), median(measured) <= bound),
    };
    format!("{text}{}", if met { "" } else { " MISSED" })
}

fn print_table(rows: &[[String; 7]]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

/// Returns `MEDIAN (MIN–MAX)`.
fn spread(values: &[f64], digits: usize) -> String {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let median = median(values);
    if values.len() < 2 {
        return format!("{median:.digits$}");
    }
    format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
}

/// Returns the 99th percentile of nanoseconds, in µs.
pub(crate) fn p99_micros(mut nanos: Vec<u64>) -> f64 {
    nanos.sort_unstable();
    let at = nanos.len() * 99 / 100;
    let at = nanos.get(at).map(|nanos| Duration::from_nanos(*nanos));
    at.map_or(f64::NAN, |at| at.as_secs_f64() * 1e6)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
