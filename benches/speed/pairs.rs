//! Measuring in pairs, and the table of what came out.
//!
//! A machine that runs other things too is slow now and fast then, and it is so for both sides of a pair that is
//! measured at once: so a goal is compared with the median of the ratios, not with the ratio of anything absolute.
//! The column `best` has the ratio of the least times, which on a busy machine is nearer to the truth. A goal is missed
//! where both say so; where they disagree, nobody knows, and more rounds on a quieter machine will tell.

use anyhow::Result;
use std::fmt;

/// What one benchmark found.
pub struct Row {
    pub name: String,
    pub found: Found,
    pub goal: f64,
}

pub enum Found {
    /// Seconds of the bare side, and of ours, in the same round.
    Pairs(Vec<(f64, f64)>),
    /// A number that needs no comparison.
    Number(f64, &'static str),
}

impl Row {
    pub fn is_over(&self) -> bool {
        self.verdict() == Verdict::Over
    }

    fn verdict(&self) -> Verdict {
        let (figure, best) = match &self.found {
            Found::Pairs(pairs) => (median_ratio(pairs), best_ratio(pairs)),
            Found::Number(number, _) => (*number, *number),
        };
        match (figure > self.goal, best > self.goal) {
            (true, true) => Verdict::Over,
            (false, false) => Verdict::Ok,
            (true, false) | (false, true) => Verdict::Unsure,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Ok,
    Over,
    Unsure,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.found {
            Found::Pairs(pairs) => {
                let bare = milliseconds(median(pairs.iter().map(|pair| pair.0)));
                let ours = milliseconds(median(pairs.iter().map(|pair| pair.1)));
                let ratios = pairs.iter().map(|(bare, ours)| ours / bare);
                let least = least_of(ratios.clone());
                let most = ratios.fold(0.0, f64::max);
                let ratio = format!("{:.2} ({least:.2}..{most:.2})", median_ratio(pairs));
                let best = best_ratio(pairs);
                write!(
                    f,
                    "{name:<22}{bare:>12}{ours:>12}  {ratio:<22}{best:>6.2}{:>8}",
                    self.goal
                )?;
            }
            Found::Number(number, unit) => {
                let ours = format!("{number:.1} {unit}");
                write!(
                    f,
                    "{name:<22}{:>12}{ours:>12}  {:<22}{:>6}{:>8}",
                    "-", "-", "-", self.goal
                )?;
            }
        }
        f.write_str(match self.verdict() {
            Verdict::Ok => "  ok",
            Verdict::Over => "  OVER",
            Verdict::Unsure => "  unsure",
        })
    }
}

pub fn header() -> String {
    format!(
        "{:<22}{:>12}{:>12}  {:<22}{:>6}{:>8}",
        "name", "bare", "ours", "ratio (least..most)", "best", "goal"
    )
}

/// Measures both sides in turn, after one round that does not count; each gives seconds. Which one goes first changes.
pub fn alternate(
    rounds: usize,
    mut bare: impl FnMut() -> Result<f64>,
    mut ours: impl FnMut() -> Result<f64>,
) -> Result<Found> {
    let mut pairs = Vec::with_capacity(rounds);
    for round in 0..=rounds {
        let pair = if round % 2 == 0 {
            let bare = bare()?;
            (bare, ours()?)
        } else {
            let ours = ours()?;
            (bare()?, ours)
        };
        if round > 0 {
            pairs.push(pair);
        }
    }
    Ok(Found::Pairs(pairs))
}

fn median_ratio(pairs: &[(f64, f64)]) -> f64 {
    median(pairs.iter().map(|(bare, ours)| ours / bare))
}

fn best_ratio(pairs: &[(f64, f64)]) -> f64 {
    least_of(pairs.iter().map(|pair| pair.1)) / least_of(pairs.iter().map(|pair| pair.0))
}

/// Seconds between two times in nanoseconds.
pub fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

fn least_of(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::INFINITY, f64::min)
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1e3)
}
