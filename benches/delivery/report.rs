//! Rounds, medians, and how they are shown.

use crate::Outcome;

/// Rounds of each case; odd, so that a median is a measurement.
const ROUNDS: usize = 15;

/// Which way a result is good.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// Measurements of the two sides: `[round]`.
struct Ratio {
    name: &'static str,
    unit: &'static str,
    ours: Vec<f64>,
    theirs: Vec<f64>,
    target: Option<Target>,
}

/// All results of a run.
#[derive(Default)]
pub(crate) struct Report {
    ratios: Vec<Ratio>,
    figures: Vec<(&'static str, Vec<f64>)>,
}

/// Runs both sides alternately, after one round of each that does not count.
pub(crate) fn alternate<T>(
    mut ours: impl FnMut() -> Outcome<T>,
    mut theirs: impl FnMut() -> Outcome<T>,
) -> Outcome<(Vec<T>, Vec<T>)> {
    ours()?;
    theirs()?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(ours()?);
        b.push(theirs()?);
    }
    Ok((a, b))
}

impl Report {
    /// Adds a result of two sides, one number a round of each.
    pub(crate) fn ratio(
        &mut self,
        name: &'static str,
        unit: &'static str,
        target: Option<Target>,
        (ours, theirs): (Vec<f64>, Vec<f64>),
    ) {
        self.ratios.push(Ratio {
            name,
            unit,
            ours,
            theirs,
            target,
        });
    }

    /// Adds a result that stands for itself, measured once or more often.
    pub(crate) fn figure(&mut self, name: &'static str, measured: Vec<f64>) {
        self.figures.push((name, measured));
    }

    pub(crate) fn print(&self) {
        let header = ["", "unit", "evloopd", "yardstick", "ratio", "target"];
        let mut rows = vec![header.map(String::from)];
        rows.extend(self.ratios.iter().map(Ratio::row));
        rows.extend(self.figures.iter().map(|(name, measured)| {
            let mut row = [const { String::new() }; 6];
            row[0] = (*name).into();
            row[2] = spread(measured, 1);
            row
        }));
        print_table(&rows);
        println!();
        for ratio in &self.ratios {
            println!("ratio {} {:.3}", ratio.name, median(&ratio.rounds()));
        }
        for (name, measured) in &self.figures {
            println!("figure {name} {:.1}", median(measured));
        }
    }
}

impl Ratio {
    fn rounds(&self) -> Vec<f64> {
        let pairs = self.ours.iter().zip(&self.theirs);
        pairs.map(|(ours, theirs)| ours / theirs).collect()
    }

    fn row(&self) -> [String; 6] {
        let rounds = self.rounds();
        let (target, met) = match self.target {
            None => (String::new(), true),
            Some(Target::AtLeast(bound)) => (format!("≥ {bound}"), median(&rounds) >= bound),
            Some(Target::AtMost(bound)) => (format!("≤ {bound}"), median(&rounds) <= bound),
        };
        [
            self.name.into(),
            self.unit.into(),
            spread(&self.ours, 1),
            spread(&self.theirs, 1),
            spread(&rounds, 3),
            format!("{target}{}", if met { "" } else { " MISSED" }),
        ]
    }
}

fn print_table(rows: &[[String; 6]]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

/// `MEDIAN (MIN–MAX)`
fn spread(values: &[f64], digits: usize) -> String {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let median = median(values);
    if values.len() < 2 {
        return format!("{median:.digits$}");
    }
    format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
